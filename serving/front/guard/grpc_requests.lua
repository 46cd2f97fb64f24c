-- gRPC requests: the message inference.ModelInferRequest of
-- https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto

-- Checks an InferParameter. Returns the number of its field, which says its type, or 0.
local function check_parameter_value(text, pos, after)
  local kind = 0
  while pos < after do
    local number, wire, first, next_pos = read_field(text, pos, after - 1)
    if number == 3 then
      read_text(text, wire, first, next_pos)
    elseif number <= 5 then
      expect(wire, number == 4 and FIXED64 or VARINT)
    end
    kind = number
    pos = next_pos
  end
  return kind
end

-- Returns the key of an entry of a map of parameters, and the number of the field of its value.
local function read_parameter(text, wire, pos, after)
  expect(wire, BYTES)
  local key, kind = "", 0
  while pos < after do
    local number, inner, first, next_pos = read_field(text, pos, after - 1)
    if number == 1 then
      key = read_text(text, inner, first, next_pos)
    elseif number == 2 then
      expect(inner, BYTES)
      kind = check_parameter_value(text, first, next_pos)
    end
    pos = next_pos
  end
  if find(key, "\0", 1, true) then
    refuse("the name of a parameter holds a NUL character")
  end
  return key, kind
end

-- Returns -1 for a varint that stands for a negative number.
local function signed(value)
  return value < 2 ^ 63 and value or -1
end

local function read_shape(tensor, text, wire, first, after, value)
  local shape = tensor.shape
  if wire == VARINT then
    shape[#shape + 1] = signed(value)
    return
  end
  expect(wire, BYTES)
  while first < after and #shape <= MAX_DIMS do
    value, first = read_varint(text, first, after - 1)
    shape[#shape + 1] = signed(value)
  end
end

-- Fields of InferTensorContents by datatype.
local CONTENTS = {
  BOOL = 1, INT8 = 2, INT16 = 2, INT32 = 2, INT64 = 3, UINT8 = 4, UINT16 = 4, UINT32 = 4, UINT64 = 5, FP32 = 6, FP64 = 7, BYTES = 8,
}

-- Returns the number of elements in a field of InferTensorContents that is not bytes_contents.
local function count_numbers(text, number, wire, first, after)
  local single = number == 6 and FIXED32 or number == 7 and FIXED64 or VARINT
  if wire == single then
    return 1
  end
  expect(wire, BYTES)
  local count = 0
  if single == VARINT then
    while first < after do
      local _
      _, first = read_varint(text, first, after - 1)
      count = count + 1
    end
    return count
  end
  count = (after - first) / (single == FIXED32 and 4 or 8)
  if count % 1 ~= 0 then
    broken()
  end
  return count
end

local function read_contents(tensor, text, wire, pos, after)
  expect(wire, BYTES)
  local counts, texts = tensor.counts, tensor.texts
  while pos < after do
    local number, inner, first, next_pos = read_field(text, pos, after - 1)
    if number == 8 then
      expect(inner, BYTES)
      texts[#texts + 1] = sub(text, first, next_pos - 1)
    elseif number < 8 then
      counts[number] = (counts[number] or 0) + count_numbers(text, number, inner, first, next_pos)
    end
    pos = next_pos
  end
end

-- Reads an InferInputTensor.
local function read_input(text, wire, pos, after)
  expect(wire, BYTES)
  local tensor, keys = { name = "", datatype = "", shape = {}, counts = {}, texts = {} }, {}
  while pos < after do
    local number, inner, first, next_pos, value = read_field(text, pos, after - 1)
    if number == 1 then
      tensor.name = read_text(text, inner, first, next_pos)
    elseif number == 2 then
      tensor.datatype = read_text(text, inner, first, next_pos)
    elseif number == 3 then
      read_shape(tensor, text, inner, first, next_pos, value)
    elseif number == 4 then
      keys[#keys + 1] = read_parameter(text, inner, first, next_pos)
    elseif number == 5 then
      read_contents(tensor, text, inner, first, next_pos)
    end
    pos = next_pos
  end
  for _, key in ipairs(keys) do
    check_input_parameter(tensor, key)
  end
  return tensor
end

-- Reads an InferRequestedOutputTensor and returns its name.
local function read_output(text, wire, pos, after)
  expect(wire, BYTES)
  local name, keys = "", {}
  while pos < after do
    local number, inner, first, next_pos = read_field(text, pos, after - 1)
    if number == 1 then
      name = read_text(text, inner, first, next_pos)
    elseif number == 2 then
      keys[#keys + 1] = read_parameter(text, inner, first, next_pos)
    end
    pos = next_pos
  end
  for _, key in ipairs(keys) do
    check_output_parameter(name, key)
  end
  return name
end

-- Reads a ModelInferRequest that starts at pos.
local function read_request(text, pos)
  local request = { model = "", version = "", parameters = {}, inputs = {}, outputs = {}, raw_first = {}, raw_size = {} }
  local last, fields = #text, 0
  while pos <= last do
    fields = fields + 1
    if fields > MAX_TOP_LEVEL_FIELDS then
      refuse("the message has more than " .. MAX_TOP_LEVEL_FIELDS .. " fields")
    end
    local number, wire, first, after = read_field(text, pos, last)
    if number == 1 then
      request.model = read_text(text, wire, first, after)
    elseif number == 2 then
      request.version = read_text(text, wire, first, after)
    elseif number == 3 then
      checked_id = read_text(text, wire, first, after)
    elseif number == 4 then
      local key, kind = read_parameter(text, wire, first, after)
      request.parameters[key] = kind
    elseif number == 5 then
      request.inputs[#request.inputs + 1] = read_input(text, wire, first, after)
    elseif number == 6 then
      request.outputs[#request.outputs + 1] = read_output(text, wire, first, after)
    elseif number == 7 then
      expect(wire, BYTES)
      local n = #request.raw_first + 1
      request.raw_first[n], request.raw_size[n] = first, after - first
    end
    pos = after
  end
  return request
end

-- Checks the elements of a tensor that has InferTensorContents.
local function check_contents(tensor)
  local counts, wanted = tensor.counts, CONTENTS[tensor.datatype]
  counts[8] = #tensor.texts
  for number, count in pairs(counts) do
    if number ~= wanted and count > 0 then
      refuse_input(tensor.name, "its contents are of another datatype than " .. tensor.datatype)
    end
  end
  check_count(tensor, wanted and counts[wanted] or 0)
end

local function check_grpc_inputs(request, body, ensemble)
  local seen, raw = {}, #request.raw_first
  if raw > 0 and raw ~= #request.inputs then
    refuse(format("raw_input_contents must be given for all inputs or for none: there are %d for %d inputs", raw, #request.inputs))
  end
  for i, tensor in ipairs(request.inputs) do
    check_name("input", tensor.name, seen)
    check_datatype(tensor)
    check_shape(tensor)
    if raw == 0 then
      check_contents(tensor)
    elseif next(tensor.counts) or #tensor.texts > 0 then
      refuse_input(tensor.name, "it has both contents and raw_input_contents")
    else
      check_raw(tensor, body, request.raw_first[i], request.raw_size[i], ensemble)
    end
  end
end

-- Returns the set of the requested outputs.
local function check_outputs(request)
  local seen = {}
  for _, name in ipairs(request.outputs) do
    check_name("output", name, seen)
  end
  return seen
end

-- Field 6 (outputs) of ModelInferRequest with field 1 (name).
local REQUESTED_FIELD = "\50\8\10\6DIGEST"

-- Checks a gRPC body that holds one ModelInferRequest.
local function check_grpc(body)
  fields_left = MAX_VALUES
  local first = frame_start(body)
  local request = read_request(body, first)
  local ensemble = check_ensemble(request.model)
  check_grpc_inputs(request, body, ensemble)
  local seen = check_outputs(request)
  if not ensemble then
    return nil
  end
  ensemble = check_inputs(ensemble, request.inputs)
  local is_asked = seen[DIGEST] or false
  local checked = { expected = request_digests(ensemble, request.inputs), is_asked = is_asked, form = "grpc" }
  if #request.outputs > 0 and not is_asked then
    checked.body = frame(sub(body, first) .. REQUESTED_FIELD)
  end
  return checked
end

-- The model of the message of a stream that is checked now, if it streams.
local streaming_model

-- Checks that Triton will accept the tensors of a message: see streams.lua for what comes if it does not.
local function check_streamed_tensors(request, model)
  model = check_inputs(model, request.inputs)
  for name in pairs(check_outputs(request)) do
    if not model.tensors.output[name] then
      refuse("the model has no output '" .. shown(name) .. "'")
    end
  end
end

local EMPTY_FINAL = "triton_enable_empty_final_response"
local RESERVED = { sequence_id = true, sequence_start = true, sequence_end = true, priority = true }

local function check_streamed_parameters(parameters)
  for key, kind in pairs(parameters) do
    if key == EMPTY_FINAL and kind ~= 1 then
      refuse("parameter '" .. key .. "' must be a bool")
    elseif key == "timeout" and kind ~= 2 then
      refuse("parameter 'timeout' must be an int64")
    elseif RESERVED[key] or key ~= EMPTY_FINAL and find(key, "^triton_") then
      refuse("parameter '" .. shown(key) .. "' is not supported in a stream")
    elseif kind < 1 or kind > 4 then
      refuse("parameter '" .. shown(key) .. "' must be a bool, an int64, a double or a string")
    end
  end
end

-- Checks one frame of a stream, which holds a ModelInferRequest. Returns the name of its model, and whether the client asked for last
-- answers without tensors.
local function check_streamed(body)
  fields_left = MAX_VALUES
  local request = read_request(body, frame_start(body))
  local model = check_model(request.model)
  if not model and is_unknown(request.model) then
    refuse("Request for unknown model: '" .. request.model .. "' is not found", { http = "404", grpc = "5" }) -- as Triton says it
  elseif not (model and model.streams) then
    refuse(request.model .. " does not stream: use ModelInfer", UNSUPPORTED)
  end
  streaming_model = request.model
  if request.version ~= "" and request.version ~= model.version then
    refuse(request.model .. " has no version " .. shown(request.version))
  end
  check_grpc_inputs(request, body, nil)
  check_streamed_tensors(request, model)
  check_streamed_parameters(request.parameters)
  return request.model, request.parameters[EMPTY_FINAL] ~= nil
end
