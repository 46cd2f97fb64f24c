-- Answers. Each function returns the digests in the answer as digests_text writes them, or nil; and the answer without its DIGEST.
--
-- JSON is searched, not decoded. A search for '{"name":"DIGEST",' finds an object and never a client's text: within a string the first
-- quotation mark would stand behind a backslash, and one that ends a string is not followed by a letter. The same holds for
-- '{"binary_data_size":' and '"DIGEST":'. Triton writes JSON without spaces; an answer that is written in another way does not pass.

-- Returns the position of the only occurrence of a text.
local function find_once(body, text)
  local first, last = find(body, text, 1, true)
  return first and not find(body, text, last, true) and first or nil
end

-- Returns a text without [first, after), and without the comma beside it.
local function cut(text, first, after)
  if byte(text, first - 1) == 44 then
    first = first - 1
  elseif byte(text, after) == 44 then
    after = after + 1
  end
  return sub(text, 1, first - 1) .. sub(text, after)
end

-- Reads INT64 numbers that are not negative from 8-byte little-endian data.
local function raw_digests(text, first, after)
  if (after - first) % 8 ~= 0 or after > #text + 1 then
    return nil
  end
  local digests, words = {}, ffi.cast(UINT32, ffi.cast(UINT8, text) + (first - 1))
  for i = 1, (after - first) / 8 do
    digests[i] = words[2 * i - 2] + 2 ^ 32 * words[2 * i - 1]
  end
  return digests_text(digests)
end

-- Reads the answer to a generate request, a flat object.
local function flat_answer(body)
  local first = find_once(body, '"DIGEST":')
  if not first then
    return nil
  end
  local digest, after = match(body, '^"DIGEST":(%d+)()', first)
  if not digest then
    digest, after = match(body, '^"DIGEST":%[([%d,]+)%]()', first)
  end
  return digest, digest and cut(body, first, after)
end

local OUTPUT = '{"name":"DIGEST",'
local JSON_OUTPUT = '^{"name":"DIGEST","datatype":"INT64","shape":%[[%d,]*%],"data":%[([%d,]*)%]}()'
local BINARY_OUTPUT = '^{"name":"DIGEST","datatype":"INT64","shape":%[[%d,]*%],"parameters":{"binary_data_size":(%d+)}}()'

-- Reads the answer to an inference request. Also returns the length of the JSON header without DIGEST.
local function infer_answer(body, length_header)
  local header_length = header_length_of(length_header, body)
  local header = header_length == #body and body or sub(body, 1, header_length)
  local first = find_once(header, OUTPUT)
  if not first then
    return nil
  end
  local digests, after = match(header, JSON_OUTPUT, first)
  if digests then
    local rest = cut(header, first, after)
    return digests, rest .. sub(body, header_length + 1), #rest
  end
  local size
  size, after = match(header, BINARY_OUTPUT, first)
  if not size then
    return nil
  end
  local data = header_length + 1
  for earlier in gmatch(sub(header, 1, first), '{"binary_data_size":(%d+)') do
    data = data + tonumber(earlier)
  end
  local data_after, rest = data + tonumber(size), cut(header, first, after)
  return raw_digests(body, data, data_after), rest .. sub(body, header_length + 1, data - 1) .. sub(body, data_after), #rest
end

-- Reads a gRPC body that holds one ModelInferResponse.
local function grpc_answer(body)
  fields_left = MAX_VALUES
  local pos, last = frame_start(body), #body
  local start, names, output_spans, raw_spans = pos, {}, {}, {}
  local index
  while pos <= last do
    local number, wire, first, after = read_field(body, pos, last)
    if number == 5 then
      output_spans[#output_spans + 1] = { pos, after }
      local inner = first
      while inner < after do
        local field, kind, value_first, value_after = read_field(body, inner, after - 1)
        if field == 1 and kind == BYTES and sub(body, value_first, value_after - 1) == DIGEST then
          if index then
            return nil
          end
          index = #output_spans
        end
        inner = value_after
      end
    elseif number == 6 then
      expect(wire, BYTES)
      raw_spans[#raw_spans + 1] = { pos, after, first }
    end
    pos = after
  end
  if not index or not raw_spans[index] then
    return nil
  end
  local one, two = output_spans[index], raw_spans[index]
  if one[1] > two[1] then
    one, two = two, one
  end
  local message = sub(body, start, one[1] - 1) .. sub(body, one[2], two[1] - 1) .. sub(body, two[2])
  return raw_digests(body, raw_spans[index][3], raw_spans[index][2]), frame(message)
end

local ANSWERS = { json = infer_answer, flat = flat_answer, grpc = grpc_answer }

-- Compares an answer with its request. Returns nil and a message if it must not leave; else true, the body to send, and the length of
-- its JSON header.
local function check_answer(form, expected, is_asked, body, length_header)
  if expected == "" then
    return nil, NOT_COMPARABLE
  end
  local is_read, digests, rest, header_length = pcall(ANSWERS[form], body, length_header)
  if not is_read or digests ~= expected then
    return nil, FOREIGN
  elseif is_asked then
    return true, body, length_header
  end
  return true, rest, header_length
end

-- Says what a client is told instead of an error of Triton. Returns the message and its kind; nil: as it is.
-- is_internal tells Triton's own failures from its refusals, which repeat names and words of the client. So only a whole message is one of
-- a model about a failure that is not the request's: at generate and in streams, Triton gives it the status of a refusal.
local function translate_error(message, is_internal)
  if FAILURES[message] then
    return message, FAILED[FAILURES[message]]
  elseif is_internal and (find(message, "Stub process", 1, true) or find(message, "not healthy", 1, true)) then
    return RESTARTING, UNAVAILABLE
  elseif find(message, "Traceback (most recent call last)", 1, true) or find(message, "\nAt:\n", 1, true) then
    return MODEL_FAILED, FAILED["13"]
  elseif find(message, "has no available versions$") or find(message, "is not ready$") then
    return message, UNAVAILABLE
  end
end
