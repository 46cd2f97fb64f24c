-- HTTP requests. A checked request is {expected = digests or "", is_asked = whether the client asked for DIGEST itself,
-- form = how the answer is written, body and header_length = what to send instead, if it differs}. It is nil for others' models.

-- A chunk of Lua has room for 200 local names, so most of these are local to a block.
local header_length_of, check_http
do

local function list_of(value, what)
  if type(value) ~= "table" or not value.items then
    refuse(what .. " must be a list")
  end
  return value
end

local function object_of(value, what)
  if type(value) ~= "table" or not value.fields then
    refuse(what .. " must be an object")
  end
  return value.fields
end

local function string_of(value, what)
  if type(value) ~= "string" then
    refuse(what .. " must be a string")
  end
  return value
end

-- Returns the fields of the body of a request.
local function fields_of(text)
  local root = object_of(decode(text), "the body")
  if root.id ~= nil then
    checked_id = string_of(root.id, "id")
  end
  return root
end

-- Appends the elements of nested lists to a list of texts. Returns the new length.
local function flatten(tensor, list, texts, n)
  local is_bytes = tensor.datatype == "BYTES"
  local items = list.items
  for i = 1, list.n do
    local value = items[i]
    local kind = type(value)
    if kind == "table" and value.items then
      n = flatten(tensor, value, texts, n)
    elseif is_bytes and kind == "string" then
      n = n + 1
      texts[n] = value
    elseif not is_bytes and (kind == "number" or kind == "boolean") then
      n = n + 1
    else
      refuse_input(tensor.name, "data of the datatype " .. tensor.datatype .. " must hold " .. (is_bytes and "strings" or "numbers"))
    end
  end
  return n
end

local function json_input(value, seen)
  local fields = object_of(value, "each input")
  local tensor = { name = string_of(fields.name, "the name of an input") }
  check_name("input", tensor.name, seen)
  local what = "input '" .. shown(tensor.name) .. "': "
  tensor.datatype = string_of(fields.datatype, what .. "the datatype")
  check_datatype(tensor)
  tensor.shape = list_of(fields.shape, what .. "the shape").items
  check_shape(tensor)
  if fields.parameters ~= nil then
    for key, parameter in pairs(object_of(fields.parameters, what .. "parameters")) do
      check_input_parameter(tensor, key)
      if key == "binary_data_size" then
        tensor.size = is_whole(parameter) and parameter or refuse_input(tensor.name, "binary_data_size must be a whole number")
      end
    end
  end
  if (fields.data ~= nil) == (tensor.size ~= nil) then
    refuse_input(tensor.name, "it must have either data or binary_data_size")
  elseif fields.data ~= nil then
    tensor.texts = {}
    check_count(tensor, flatten(tensor, list_of(fields.data, what .. "data"), tensor.texts, 0))
  end
  return tensor
end

local function json_outputs(value)
  local outputs, seen = list_of(value, "outputs"), {}
  for _, output in ipairs(outputs.items) do
    local fields = object_of(output, "each output")
    local name = string_of(fields.name, "the name of an output")
    check_name("output", name, seen)
    if fields.parameters ~= nil then
      for key in pairs(object_of(fields.parameters, "output '" .. shown(name) .. "': parameters")) do
        check_output_parameter(name, key)
      end
    end
  end
  return outputs, seen[DIGEST] or false
end

-- Checks the binary data that follows the JSON header.
local function check_binary(tensors, body, header_length, ensemble)
  local first = header_length + 1
  for _, tensor in ipairs(tensors) do
    if tensor.size then
      if tensor.size > #body - first + 1 then
        refuse_input(tensor.name, "binary_data_size is more than the data of the request")
      end
      check_raw(tensor, body, first, tensor.size, ensemble)
      first = first + tensor.size
    end
  end
  if first ~= #body + 1 then
    refuse(format("the request has %.0f bytes of binary data that belong to no input", #body + 1 - first))
  end
end

function header_length_of(text, body)
  if not text then
    return #body
  elseif not find(text, "^%d+$") or #text > 10 or tonumber(text) > #body then
    refuse("Inference-Header-Content-Length must be a number that is not more than the length of the body")
  end
  return tonumber(text)
end

local function is_list(value)
  return type(value) == "table" and value.items ~= nil
end

-- Checks that options can be parameters for Triton: numbers, texts, true and false. elsewhere: where else lists and null may stand.
local function check_options(options, elsewhere)
  for name, value in pairs(options) do
    if type(value) == "table" then
      local what = value == NULL and "null" or is_list(value) and "a list" or "an object"
      refuse(format("option '%s': %s must be JSON in a text%s", shown(name), what, elsewhere))
    end
  end
end

local REQUESTED = '{"name":"DIGEST","parameters":{"binary_data":false}},'

-- Checks an inference request. length_header is the value of Inference-Header-Content-Length or nil.
local function check_infer(ensemble, length_header, body)
  local header_length = header_length_of(length_header, body)
  local header = header_length == #body and body or sub(body, 1, header_length)
  local root, seen, tensors = fields_of(header), {}, {}
  for i, input in ipairs(list_of(root.inputs, "inputs").items) do
    tensors[i] = json_input(input, seen)
  end
  check_binary(tensors, body, header_length, ensemble)
  local outputs, is_asked = nil, false
  if root.outputs ~= nil then
    outputs, is_asked = json_outputs(root.outputs)
  end
  if not ensemble then
    return nil
  end
  ensemble = check_inputs(ensemble, tensors)
  if root.parameters ~= nil then
    check_options(object_of(root.parameters, "parameters"), "")
  end
  local checked = { expected = request_digests(ensemble, tensors), is_asked = is_asked, form = "json" }
  if outputs and outputs.n > 0 and not is_asked then
    checked.body = sub(body, 1, outputs.start) .. REQUESTED .. sub(body, outputs.start + 1)
    checked.header_length = length_header and header_length + #REQUESTED
  end
  return checked
end

-- Returns the texts of an input of a generate request, or nil if there is none.
local function generate_texts(name, value)
  if type(value) == "string" then
    return { value }
  elseif value == nil then
    return nil
  end
  for _, text in ipairs(list_of(value, "input '" .. shown(name) .. "'").items) do
    string_of(text, "each element of input '" .. shown(name) .. "'")
  end
  return value.items
end

-- Checks a request of the generate extension: a flat object of inputs and parameters.
local function check_generate(ensemble, body)
  local root, columns = fields_of(body), {}
  if not ensemble then
    return nil
  end
  local nested = root.parameters == nil and {} or object_of(root.parameters, "parameters")
  for i, name in ipairs(ensemble.inputs) do
    if nested[name] ~= nil then
      refuse_input(name, "it must stand beside parameters, not inside")
    end
    columns[i] = generate_texts(name, root[name])
    if not columns[i] then
      refuse("input '" .. name .. "' is missing")
    elseif #columns[i] ~= #columns[1] then
      refuse_input(name, "it must have as many rows as the other inputs")
    end
    root[name] = nil
  end
  root.parameters = nil
  check_options(root, "")
  check_options(nested, "")
  return { expected = column_digests(columns), is_asked = false, form = "flat" }
end

local check_streaming
do

-- Returns the inputs and options of a request by name. Triton reads those in parameters like those beside it.
local function fields_by_name(root)
  local nested = root.parameters == nil and {} or object_of(root.parameters, "parameters")
  root.id, root.parameters = nil, nil
  for name, value in pairs(nested) do
    if root[name] ~= nil then
      refuse("'" .. shown(name) .. "' is given twice: in parameters and beside it")
    end
    root[name] = value
  end
  return root
end

-- Returns what the value of an input must be, and whether it is.
local function wanted_value(name, datatype, value)
  local kind = type(value)
  if datatype == "BYTES" then
    return name == "sampling_parameters" and "JSON in a text" or "a text", kind == "string"
  elseif datatype == "BOOL" then
    return "true or false", kind == "boolean"
  elseif find(datatype, "^FP") or datatype == "BF16" then
    return "a number", kind == "number"
  end
  return "a whole number", kind == "number" and value % 1 == 0
end

-- Checks an input against the model's configuration. Returns its value, which may be a list of one.
local function input_value(name, input, value)
  local items = is_list(value) and value.items or { value }
  if is_list(value) and input.size >= 0 and value.n ~= input.size then
    refuse_input(name, format("its list must have length %d, not %d", input.size, value.n))
  end
  for _, item in ipairs(items) do
    local what, fits = wanted_value(name, input.datatype, item)
    if not fits then
      refuse_input(name, "it must be " .. what)
    end
  end
  return items[1]
end

-- Checks a request to a model that answers in pieces. Triton answers those that are refused here with 500, or with an error and 200, or
-- with a message that is not true.
function check_streaming(model, verb, body)
  local fields, streams = fields_by_name(fields_of(body)), nil
  for name, input in pairs(model.tensors.input) do
    if fields[name] ~= nil then
      local value = input_value(name, input, fields[name])
      streams = streams or name == "stream" and value
      fields[name] = nil
    elseif not input.is_optional then
      refuse("input '" .. name .. "' is missing")
    end
  end
  if verb == "generate" and streams then
    refuse("generate has one answer: send a request with stream to generate_stream")
  elseif is_list(fields.messages) then
    refuse("option 'messages' must be true or false: the messages stand in text_input, as JSON in a text")
  end
  check_options(fields, ", or stand in sampling_parameters")
end

end

-- Checks a request to /v2/models/NAME/…/VERB.
function check_http(name, verb, length_header, body)
  if verb == "infer" then
    return check_infer(check_ensemble(name), length_header, body)
  end
  local model = check_model(name)
  if model and model.streams then
    return check_streaming(model, verb, body)
  elseif verb == "generate_stream" and model then
    refuse(name .. " does not stream: send the request to generate")
  end
  return check_generate(model, body)
end

end
