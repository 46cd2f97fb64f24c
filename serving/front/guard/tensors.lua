-- Checks of tensors, for both protocols. A tensor is {name, datatype, shape = list of numbers, count, texts = rows of BYTES}.

local ITEM_SIZES = {
  BOOL = 1, INT8 = 1, INT16 = 2, INT32 = 4, INT64 = 8, UINT8 = 1, UINT16 = 2, UINT32 = 4, UINT64 = 8,
  FP16 = 2, BF16 = 2, FP32 = 4, FP64 = 8,
}

local function is_whole(value)
  return type(value) == "number" and value >= 0 and value % 1 == 0
end

local function check_name(kind, name, seen)
  if name == "" or find(name, "%c") then
    refuse("the name of an " .. kind .. " is empty or holds control characters")
  elseif seen[name] then
    refuse(kind .. " '" .. shown(name) .. "' is given twice")
  end
  seen[name] = true
end

local function check_datatype(tensor)
  if tensor.datatype ~= "BYTES" and not ITEM_SIZES[tensor.datatype] then
    refuse_input(tensor.name, "'" .. shown(tensor.datatype) .. "' is not a datatype")
  end
end

-- Sets the number of elements of a tensor.
local function check_shape(tensor)
  local count, is_empty = 1, false
  if #tensor.shape > MAX_DIMS then
    refuse_input(tensor.name, "the shape has more than " .. MAX_DIMS .. " dims")
  end
  for _, size in ipairs(tensor.shape) do
    if not is_whole(size) then
      refuse_input(tensor.name, "the shape must hold whole numbers that are not negative")
    end
    count = count * (size == 0 and 1 or size)
    is_empty = is_empty or size == 0
    if count > MAX_ELEMENTS then
      refuse_input(tensor.name, "the shape has more than 2147483648 elements")
    end
  end
  tensor.count = is_empty and 0 or count
end

local function check_count(tensor, found)
  if found ~= tensor.count then
    refuse_input(tensor.name, format("the shape has %.0f elements, the data has %.0f", tensor.count, found))
  end
end

-- Checks the data of a tensor at body[first..first+size-1]. Keeps its texts if the ensemble is ours and may take so many rows.
local function check_raw(tensor, body, first, size, ensemble)
  if tensor.datatype ~= "BYTES" then
    local wanted = tensor.count * ITEM_SIZES[tensor.datatype]
    if size ~= wanted then
      refuse_input(tensor.name, format("%s of this shape has %.0f bytes of data, not %.0f", tensor.datatype, wanted, size))
    end
    return
  end
  local start, pos, count = ffi.cast(UINT8, body) + (first - 1), 0, tensor.count
  local texts, found = ensemble and count <= ensemble.max_rows and {} or nil, 0
  while pos < size and found < count do
    local length = size - pos >= 4 and ffi.cast(UINT32, start + pos)[0] or size
    pos = pos + 4 + length
    if pos > size then
      refuse_input(tensor.name, format("the length in front of element %.0f does not fit the data", found))
    end
    found = found + 1
    if texts then
      texts[found] = sub(body, first + pos - length, first + pos - 1)
    end
  end
  check_count(tensor, found)
  if pos ~= size then
    refuse_input(tensor.name, "bytes follow its last element")
  end
  tensor.texts = texts
end

local function check_input_parameter(tensor, key)
  if find(key, "^shared_memory_") then
    refuse_input(tensor.name, "shared memory is not supported: send the data in the request")
  end
end

local function check_output_parameter(name, key)
  if key == "classification" then
    refuse("output '" .. shown(name) .. "': the classification extension is not supported: read the ensemble's own outputs")
  elseif find(key, "^shared_memory_") then
    refuse("output '" .. shown(name) .. "': shared memory is not supported: read the data in the answer")
  end
end

local check_inputs
do

local function names_of(inputs)
  local names = {}
  for name in pairs(inputs) do
    names[#names + 1] = name
  end
  sort(names)
  return names
end

-- Says what is wrong with a tensor of a request to a model of ours, or nothing.
local function tensor_problem(model, tensor)
  local input, shape, rank = model.tensors.input[tensor.name], tensor.shape, model.has_rows and 2 or 1
  if not input then
    local names = names_of(model.tensors.input)
    return format("input '%s' is unknown: the model takes %s", shown(tensor.name), concat(names, ", "))
  elseif tensor.datatype ~= input.datatype then
    return format("input '%s': its datatype must be %s, not %s", tensor.name, input.datatype, tensor.datatype)
  elseif #shape ~= rank or input.size >= 0 and shape[rank] ~= input.size then
    local wanted = format(model.has_rows and "[rows, %d]" or "[%d]", input.size)
    return format("input '%s': its shape must be %s, not [%s]", tensor.name, wanted, concat(shape, ", "))
  end
end

local function inputs_problem(model, tensors)
  local given, inputs = {}, model.tensors.input
  for _, tensor in ipairs(tensors) do
    local problem = tensor_problem(model, tensor)
    if problem then
      return problem
    end
    given[tensor.name] = true
  end
  for name, input in pairs(inputs) do
    if not (given[name] or input.is_optional) then
      return "input '" .. name .. "' is missing"
    end
  end
end

-- Checks that a model of ours takes the inputs of a request: names, datatypes and shapes. Returns the model, which is read again where it
-- does not: another generation may be current since. Without inputs in the configuration, Triton checks them.
function check_inputs(model, tensors)
  local problem = inputs_problem(model, tensors)
  if problem then
    model = find_model(checked_model, 1)
    problem = inputs_problem(model, tensors)
  end
  if problem and (model.streams or next(model.tensors.input)) then
    refuse(problem)
  end
  return model
end

end
