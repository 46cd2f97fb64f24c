-- Models of the repository.

local STEPS = { "_preprocess", "_model", "_postprocess" }

-- Our models by name, with the time at which the manifest was read. An ensemble or a single model that gives one answer: {inputs = sorted
-- names, max_rows, has_steps}. A model that streams: {streams = true, tensors = {input = …, output = …}}.
local models = {}

local function read_file(name, file_name)
  local file = REPOSITORY and io.open(REPOSITORY .. "/" .. name .. "/" .. file_name, "rb")
  local text = file and file:read("*a")
  if file then
    file:close()
  end
  return text
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

-- Reads the text of a manifest. Returns nil if it is not that of a model of ours.
local function read_manifest(name, text)
  local is_json, manifest = pcall(decode, text)
  local fields = is_json and type(manifest) == "table" and manifest.fields
  if not fields or fields.kind ~= "repository" then
    return nil
  elseif fields.probe.fields.endpoint == STREAMING_ENDPOINT then
    local config = read_file(name, "config.pbtxt")
    return config and { streams = true, tensors = read_tensors(config) }
  end
  local names = {}
  for i, input in ipairs(fields.probe.fields.inputs.items) do
    names[i] = input.fields.name
  end
  sort(names)
  local has_steps = fields.layout == nil or fields.layout == "ensemble"
  return { inputs = names, max_rows = fields.max_batch_size or MAX_VALUES, has_steps = has_steps }
end

-- Returns a model of ours, or nil. Only ours are kept: clients choose the names. What was one stays one if its manifest is gone or
-- damaged, because Triton may still serve it. Nor do its steps become models for clients.
local function find_model(name)
  local known, now = models[name], os.time()
  if known and now - known.time < MANIFEST_SECONDS and now >= known.time then
    return known
  end
  local text = read_file(name, "manifest.json")
  local model = text and read_manifest(name, text) or known
  if model then
    model.has_steps = model.has_steps or known ~= nil and known.has_steps
    model.time = now
    models[name] = model
  end
  return model
end

-- The model of the request that is checked now, for the log of failed requests.
local checked_model

-- Checks the name of the model of an inference request. Returns the model if it is ours.
local function check_model(name)
  if not find(name, "^[A-Za-z0-9_][A-Za-z0-9_.%-]*$") then
    refuse("'" .. shown(name) .. "' is not the name of a model")
  end
  checked_model = name
  for _, suffix in ipairs(STEPS) do
    local base = #name > #suffix and sub(name, -#suffix) == suffix and sub(name, 1, -#suffix - 1)
    local ensemble = base and find_model(base)
    if ensemble and ensemble.has_steps then
      refuse(name .. " is a step of the ensemble " .. base .. ": send the request to " .. base, FORBIDDEN)
    end
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
