-- Models of the repository.

local STEPS = { "_preprocess", "_model", "_postprocess" }

-- Our ensembles and single models by name: {inputs = sorted names, max_rows, has_steps, time = when the manifest was read}.
local ensembles = {}

-- Reads the text of a manifest. Returns nil if it is not the manifest of an ensemble.
local function read_manifest(text)
  local is_json, manifest = pcall(decode, text)
  local fields = is_json and type(manifest) == "table" and manifest.fields
  if not fields or fields.kind ~= "repository" then
    return nil
  end
  local names = {}
  for i, input in ipairs(fields.probe.fields.inputs.items) do
    names[i] = input.fields.name
  end
  sort(names)
  local has_steps = fields.layout == nil or fields.layout == "ensemble"
  return { inputs = names, max_rows = fields.max_batch_size or MAX_VALUES, has_steps = has_steps }
end

-- Returns an ensemble or single model of ours, or nil. No others are kept: clients choose the names. What was one stays one if its
-- manifest is gone or damaged, because Triton may still serve it. Nor do its steps become models for clients.
local function find_ensemble(name)
  local known, now = ensembles[name], os.time()
  if known and now - known.time < MANIFEST_SECONDS and now >= known.time then
    return known
  end
  local file = REPOSITORY and io.open(REPOSITORY .. "/" .. name .. "/manifest.json", "rb")
  local text = file and file:read("*a")
  if file then
    file:close()
  end
  local ensemble = text and read_manifest(text) or known
  if ensemble then
    ensemble.has_steps = ensemble.has_steps or known ~= nil and known.has_steps
    ensemble.time = now
    ensembles[name] = ensemble
  end
  return ensemble
end

-- The model of the request that is checked now, for the log of failed requests.
local checked_model

-- Checks the name of the model of an inference request. Returns the ensemble if it is ours.
local function check_model(name)
  if not find(name, "^[A-Za-z0-9_][A-Za-z0-9_.%-]*$") then
    refuse("'" .. shown(name) .. "' is not the name of a model")
  end
  checked_model = name
  for _, suffix in ipairs(STEPS) do
    local base = #name > #suffix and sub(name, -#suffix) == suffix and sub(name, 1, -#suffix - 1)
    local ensemble = base and find_ensemble(base)
    if ensemble and ensemble.has_steps then
      refuse(name .. " is a step of the ensemble " .. base .. ": send the request to " .. base, FORBIDDEN)
    end
  end
  return find_ensemble(name)
end
