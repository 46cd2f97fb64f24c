-- Models of the repository.

local GENERATION = string.rep("%d", 14)
local STEP = "^(.+)%." .. GENERATION .. "_(%l+)$"
local STEPS = { preprocess = true, model = true, postprocess = true }

-- Our models by name, with the time at which the manifest was read: {tensors = {input = …, output = …}, has_rows = whether the shape of a
-- tensor begins with the number of rows}. An ensemble or a single model that gives one answer: also {inputs = sorted names, max_rows}. A
-- model that streams: also {streams = true, version}.
local models = {}

local function read_file(name, file_name)
  local file = REPOSITORY and io.open(REPOSITORY .. "/" .. name .. "/" .. file_name, "rb")
  local text = file and file:read("*a")
  if file then
    file:close()
  end
  return text
end

-- Returns whether the repository is known and has no model of that name, ours or another.
local function is_unknown(name)
  local folder = REPOSITORY and io.open(REPOSITORY .. "/" .. name)
  if folder then
    folder:close()
  end
  return REPOSITORY and not folder
end

-- Reads the tensors of a configuration that packaging wrote, one field a line: name → {datatype, size, is_optional}.
local function read_tensors(text)
  local tensors = { input = {}, output = {} }
  for kind, block in gmatch(text, "%f[^%z\n](%l+) (%b{})") do
    local name = tensors[kind] and match(block, '\n  name: "([%w_]+)"')
    local datatype = name and match(block, "\n  data_type: TYPE_(%w+)")
    if datatype then
      local size, is_optional = match(block, "\n  dims: (-?%d+)"), find(block, "\n  optional: true") ~= nil
      datatype = datatype == "STRING" and "BYTES" or datatype
      tensors[kind][name] = { datatype = datatype, size = tonumber(size), is_optional = is_optional }
    end
  end
  return tensors
end

-- Reads the manifest of a model, which is in the version that the configuration chooses. Returns nil if it is not a model of ours.
local function read_model(name)
  local config = read_file(name, "config.pbtxt")
  local version = config and (match(config, "version_policy {%s*specific {%s*versions: (" .. GENERATION .. ")%s") or "1")
  local text = version and read_file(name, version .. "/manifest.json")
  local is_json, manifest = pcall(decode, text or "")
  local fields = is_json and type(manifest) == "table" and manifest.fields
  if not fields or fields.kind ~= "repository" then
    return nil
  end
  local tensors, has_rows = read_tensors(config), find(config, "max_batch_size: [1-9]") ~= nil
  if fields.probe.fields.endpoint == STREAMING_ENDPOINT then
    return { streams = true, version = version, tensors = tensors, has_rows = has_rows }
  end
  local names = {}
  for i, input in ipairs(fields.probe.fields.inputs.items) do
    names[i] = input.fields.name
  end
  sort(names)
  return { tensors = tensors, has_rows = has_rows, inputs = names, max_rows = fields.max_batch_size or MAX_VALUES }
end

-- Returns a model of ours, or nil. Only ours are kept: clients choose the names. What was one stays one if its manifest is gone or
-- damaged, because Triton may still serve it. What was read is used for so many seconds.
local function find_model(name, seconds)
  local known, now = models[name], os.time()
  if known and now - known.time < (seconds or MANIFEST_SECONDS) and now >= known.time then
    return known
  end
  local model = read_model(name) or known
  if model then
    model.time = now
    models[name] = model
  end
  return model
end

-- The model of the request that is checked now, and the id in its body, for the log of failed requests.
local checked_model, checked_id

-- Checks the name of the model of an inference request. Returns the model if it is ours.
local function check_model(name)
  if not find(name, "^[A-Za-z0-9_][A-Za-z0-9_.%-]*$") then
    refuse("'" .. shown(name) .. "' is not the name of a model")
  end
  checked_model = name
  local ensemble, step = match(name, STEP)
  if STEPS[step] and find_model(ensemble) then
    refuse(name .. " is a step of the ensemble " .. ensemble .. ": send the request to " .. ensemble, FORBIDDEN)
  end
  return find_model(name)
end

-- Checks the name of the model of a request that gets one answer. Returns the ensemble if it is ours.
local function check_ensemble(name)
  local model = check_model(name)
  if model and model.streams then
    refuse(name .. " answers in pieces: send the request to generate, to generate_stream, or to ModelStreamInfer", UNSUPPORTED)
  end
  return model
end
