-- The filter in front of Triton that reads requests and answers. It runs inside Envoy (LuaJIT 2.1), once per worker thread.
--
-- Envoy's configuration limits sizes, headers, connections and paths, buffers each request, and decompresses its body. This filter
-- does what the configuration cannot say, because it depends on the body. Each check exists for a reason:
--
--   JSON depth and number of values   Triton's parser recurses: deep nesting overflows its stack and ends the server.
--   duplicate keys, NUL in names      Two readers of one text must see the same request: this filter and Triton.
--   shapes and element counts         A shape such as [1, 2^61] overflows Triton's size computation and ends the server.
--   sizes of binary data              A wrong length prefix in one request fails the good requests of its batch.
--   classification extension          It ends Triton with SIGFPE where an output holds strings.
--   shared memory                     A client could name a region of the server and read other clients' texts.
--   steps of our ensembles            Steps trust the tensors of the step before. Only the ensemble is for clients.
--   digest of the texts               A process that was paused can answer with the texts of another request. The first step computes
--                                     a digest of the texts, and the ensemble returns it as the output DIGEST. This filter computes
--                                     it too, from the request, and lets an answer pass only if the two are equal.
--   error texts                       A model that is restarting is a reason to try again (503, UNAVAILABLE), not "not found".
--                                     Stack traces and paths of the server are not for clients.
--
-- A request that fails a check is refused before Triton sees it: HTTP 400 or 403, gRPC INVALID_ARGUMENT, PERMISSION_DENIED or
-- UNIMPLEMENTED. An error inside this file refuses the request too, and withholds the answer: Envoy alone would let both pass.
--
-- REPOSITORY (global) is the path of the model repository. The configuration sets it in front of this source.

local bit = require("bit")
local ffi = require("ffi")

local band, bor, bxor, bnot, lshift, rshift = bit.band, bit.bor, bit.bxor, bit.bnot, bit.lshift, bit.rshift
local byte, char, find, format, sub = string.byte, string.char, string.find, string.format, string.sub
local gmatch, gsub, match = string.gmatch, string.gsub, string.match
local concat, floor, sort = table.concat, math.floor, table.sort

local MAX_DEPTH = 64
local MAX_VALUES = 200000
local MAX_TOP_LEVEL_FIELDS = 10000
local MAX_ELEMENTS = 2 ^ 31
local MAX_DIMS = 64
local MANIFEST_SECONDS = 5
local DIGEST = "DIGEST"
local METADATA = "tritonize.guard"
local SERVICE = "/inference.GRPCInferenceService/"
local RESTARTING = "the server is restarting: try again"
local MODEL_FAILED = "the model failed: the server's log tells why"
local UNHEALTHY = "Triton gave up a stub process that is not healthy"
local FOREIGN = "the answer belongs to another request"
local NOT_COMPARABLE = "the answer could not be compared with the request: its inputs are not those of the model"

local UINT8, INT32, UINT32 = ffi.typeof("const uint8_t *"), ffi.typeof("const int32_t *"), ffi.typeof("const uint32_t *")
local BUFFER = ffi.typeof("uint8_t [?]")

---------------------------------------------------------------------------------------------------------------------------------
-- Refusals. A check that fails raises a table; the Envoy part at the end turns it into a reply.

-- HTTP status and gRPC code of each kind of refusal.
local INVALID = { http = "400", grpc = "3" }
local FORBIDDEN = { http = "403", grpc = "7" }
local UNSUPPORTED = { http = "400", grpc = "12" }

local function refuse(message, kind)
  error({ message = message, kind = kind or INVALID }, 0)
end

-- Makes a client's text safe for a message: printable ASCII, at most 100 characters.
local function shown(text)
  return (gsub(sub(text, 1, 100), "[^\32-\126]", "?"))
end

local function refuse_input(name, problem)
  refuse("input '" .. shown(name) .. "': " .. problem)
end

---------------------------------------------------------------------------------------------------------------------------------
-- Text: UTF-8 and control characters.

-- Says whether a text holds bytes above 127 and whether it holds control characters. Reads four bytes at a time.
local function scan(text)
  local length = #text
  local words = ffi.cast(INT32, text)
  local whole = rshift(length, 2)
  local high, control = 0, 0
  for i = 0, whole - 1 do
    local word = words[i]
    high = bor(high, word)
    control = bor(control, band(word - 0x20202020, bnot(word)))
  end
  local is_high, is_control = band(high, 0x80808080) ~= 0, band(control, 0x80808080) ~= 0
  for i = whole * 4 + 1, length do
    local b = byte(text, i)
    is_high = is_high or b > 127
    is_control = is_control or b < 32
  end
  return is_high, is_control
end

-- Says whether a text is UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
local function is_utf8(text)
  if not scan(text) then
    return true
  end
  local bytes, i, length = ffi.cast(UINT8, text), 0, #text
  while i < length do
    local b = bytes[i]
    if b < 0x80 then
      i = i + 1
    else
      local more, low, high = 1, 0x80, 0xBF
      if b >= 0xC2 and b <= 0xDF then
        more = 1
      elseif b >= 0xE0 and b <= 0xEF then
        more = 2
        low = b == 0xE0 and 0xA0 or low
        high = b == 0xED and 0x9F or high
      elseif b >= 0xF0 and b <= 0xF4 then
        more = 3
        low = b == 0xF0 and 0x90 or low
        high = b == 0xF4 and 0x8F or high
      else
        return false
      end
      if i + more >= length or bytes[i + 1] < low or bytes[i + 1] > high then
        return false
      end
      for j = 2, more do
        if band(bytes[i + j], 0xC0) ~= 0x80 then
          return false
        end
      end
      i = i + more + 1
    end
  end
  return true
end

---------------------------------------------------------------------------------------------------------------------------------
-- JSON, decoded strictly. An object becomes {fields = {key = value}}, an array {items = {…}, n = length, start = position of "["}.

local NULL = {}

-- The decoder's state. Decoding never yields, so one state serves all requests of a worker.
local source, values_left, next_backslash, has_control

local function malformed(pos)
  refuse("the body is not valid JSON: error at byte " .. pos)
end

local function skip_space(pos)
  local b = byte(source, pos)
  while b == 32 or b == 10 or b == 13 or b == 9 do
    pos = pos + 1
    b = byte(source, pos)
  end
  return pos, b
end

local function hex4(bytes, i, last)
  if i + 3 > last then
    malformed(i + 1)
  end
  local value = 0
  for j = i, i + 3 do
    local b = bytes[j]
    if b >= 48 and b <= 57 then
      b = b - 48
    else
      b = bor(b, 32) - 87
      if b < 10 or b > 15 then
        malformed(j + 1)
      end
    end
    value = value * 16 + b
  end
  return value
end

-- The character after a backslash, by its byte: 34 is '"', 98 is 'b' and so on.
local ESCAPES = { [34] = 34, [92] = 92, [47] = 47, [98] = 8, [102] = 12, [110] = 10, [114] = 13, [116] = 9 }

-- Writes one code point as UTF-8 and returns the next free index.
local function put_code_point(out, n, code)
  if code < 0x80 then
    out[n] = code
    return n + 1
  elseif code < 0x800 then
    out[n], out[n + 1] = bor(0xC0, rshift(code, 6)), bor(0x80, band(code, 63))
    return n + 2
  elseif code < 0x10000 then
    out[n], out[n + 1] = bor(0xE0, rshift(code, 12)), bor(0x80, band(rshift(code, 6), 63))
    out[n + 2] = bor(0x80, band(code, 63))
    return n + 3
  end
  out[n], out[n + 1] = bor(0xF0, rshift(code, 18)), bor(0x80, band(rshift(code, 12), 63))
  out[n + 2], out[n + 3] = bor(0x80, band(rshift(code, 6), 63)), bor(0x80, band(code, 63))
  return n + 4
end

-- Decodes the escapes in source[first..last].
local function unescape(first, last)
  local bytes, out, n = ffi.cast(UINT8, source), BUFFER(last - first + 1), 0
  local i, stop = first - 1, last - 1
  while i <= stop do
    local b = bytes[i]
    if b ~= 92 then
      out[n] = b
      n, i = n + 1, i + 1
    else
      b = bytes[i + 1]
      if b == 117 then
        local code = hex4(bytes, i + 2, stop)
        i = i + 6
        if code >= 0xD800 and code <= 0xDFFF then
          if code > 0xDBFF or i + 1 > stop or bytes[i] ~= 92 or bytes[i + 1] ~= 117 then
            malformed(i + 1)
          end
          local low = hex4(bytes, i + 2, stop)
          if low < 0xDC00 or low > 0xDFFF then
            malformed(i + 1)
          end
          code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00)
          i = i + 6
        end
        n = put_code_point(out, n, code)
      else
        local plain = ESCAPES[b]
        if not plain then
          malformed(i + 2)
        end
        out[n] = plain
        n, i = n + 1, i + 2
      end
    end
  end
  return ffi.string(out, n)
end

-- Returns the position of the quotation mark that ends the string whose content begins at pos, or nil; and whether it has escapes.
-- backslash is the position of the next backslash from pos on, or nil.
local function string_end(text, pos, backslash)
  local quote = find(text, '"', pos, true)
  if not quote or not backslash or backslash > quote then
    return quote, false
  end
  pos = backslash
  local b = byte(text, pos)
  while b and b ~= 34 do
    pos = pos + (b == 92 and 2 or 1)
    b = byte(text, pos)
  end
  return b and pos, true
end

local function decode_string(pos)
  if next_backslash and next_backslash < pos then
    next_backslash = find(source, "\\", pos, true)
  end
  local quote, escaped = string_end(source, pos, next_backslash)
  if not quote then
    malformed(#source)
  end
  local value = sub(source, pos, quote - 1)
  if has_control and find(value, "[%z\1-\31]") then
    malformed(pos)
  end
  return escaped and unescape(pos, quote - 1) or value, quote + 1
end

-- Reads digits. Returns the number that value and they form, the next position and the byte there.
local function decode_digits(pos, value)
  local first, b = pos, byte(source, pos)
  while b and b >= 48 and b <= 57 do
    value = value * 10 + b - 48
    pos = pos + 1
    b = byte(source, pos)
  end
  if pos == first then
    malformed(pos)
  end
  return value, pos, b
end

-- Decodes a number: exactly if it is whole and below 2^53, others nearly. This filter needs no more.
local function decode_number(pos)
  local sign, scale, b = 1, 0, byte(source, pos)
  if b == 45 then
    sign, pos = -1, pos + 1
    b = byte(source, pos)
  end
  local value, first, exponent = nil, pos, nil
  value, pos, b = decode_digits(pos, 0)
  if pos > first + 1 and byte(source, first) == 48 then
    malformed(first)
  end
  if b == 46 then
    first = pos + 1
    value, pos, b = decode_digits(first, value)
    scale = first - pos
  end
  if b == 69 or b == 101 then
    b = byte(source, pos + 1)
    exponent, pos = decode_digits((b == 43 or b == 45) and pos + 2 or pos + 1, 0)
    scale = scale + (b == 45 and -exponent or exponent)
  end
  return sign * (scale == 0 and value or value * 10 ^ scale), pos
end

local function decode_word(pos, word, value)
  if sub(source, pos, pos + #word - 1) ~= word then
    malformed(pos)
  end
  return value, pos + #word
end

local decode_value

local function decode_object(pos, depth)
  local fields, b = {}, nil
  pos, b = skip_space(pos + 1)
  if b == 125 then
    return { fields = fields }, pos + 1
  end
  while true do
    if b ~= 34 then
      malformed(pos)
    end
    local key, value
    key, pos = decode_string(pos + 1)
    if fields[key] ~= nil then
      refuse("the body has the key '" .. shown(key) .. "' twice in one object")
    elseif find(key, "\0", 1, true) then
      refuse("the body has a key that holds a NUL character")
    end
    pos, b = skip_space(pos)
    if b ~= 58 then
      malformed(pos)
    end
    value, pos = decode_value(skip_space(pos + 1), depth)
    fields[key] = value
    pos, b = skip_space(pos)
    if b == 125 then
      return { fields = fields }, pos + 1
    elseif b ~= 44 then
      malformed(pos)
    end
    pos, b = skip_space(pos + 1)
  end
end

local function decode_array(pos, depth)
  local items, n, start, b = {}, 0, pos, nil
  pos, b = skip_space(pos + 1)
  if b == 93 then
    return { items = items, n = 0, start = start }, pos + 1
  end
  while true do
    n = n + 1
    items[n], pos = decode_value(pos, depth)
    pos, b = skip_space(pos)
    if b == 93 then
      return { items = items, n = n, start = start }, pos + 1
    elseif b ~= 44 then
      malformed(pos)
    end
    pos = skip_space(pos + 1)
  end
end

function decode_value(pos, depth)
  values_left = values_left - 1
  if values_left < 0 then
    refuse("the body holds more than " .. MAX_VALUES .. " values")
  end
  local b = byte(source, pos)
  if b == 34 then
    return decode_string(pos + 1)
  elseif b == 123 or b == 91 then
    if depth == MAX_DEPTH then
      refuse("the body is nested deeper than " .. MAX_DEPTH)
    end
    return (b == 123 and decode_object or decode_array)(pos, depth + 1)
  elseif b == 116 then
    return decode_word(pos, "true", true)
  elseif b == 102 then
    return decode_word(pos, "false", false)
  elseif b == 110 then
    return decode_word(pos, "null", NULL)
  elseif b and (b == 45 or b >= 48 and b <= 57) then
    return decode_number(pos)
  end
  malformed(pos)
end

-- Decodes a JSON text. Raises a refusal if it is not valid.
local function decode(text)
  local is_high, is_control = scan(text)
  if is_high and not is_utf8(text) then
    refuse("the body is not valid JSON: it is not UTF-8")
  end
  source, values_left, next_backslash, has_control = text, MAX_VALUES, find(text, "\\", 1, true), is_control
  local pos = skip_space(1)
  local value
  value, pos = decode_value(pos, 0)
  pos = skip_space(pos)
  if pos <= #text then
    malformed(pos)
  end
  source = nil
  return value
end

local function json_string(text)
  text = gsub(text, '[%z\1-\31"\\]', function(c)
    return format("\\u%04x", byte(c))
  end)
  return '"' .. text .. '"'
end

local function error_body(message)
  return '{"error":' .. json_string(message) .. "}"
end

---------------------------------------------------------------------------------------------------------------------------------
-- Protobuf wire format: https://protobuf.dev/programming-guides/encoding

local VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

local fields_left

local function broken()
  refuse("the body is not a valid protobuf message")
end

-- Reads a varint. Returns its value, exact up to 2^53, and the next position. Values of 2^63 and more stand for negative numbers.
local function read_varint(text, pos, last)
  local value, scale = 0, 1
  for i = 0, 9 do
    if pos > last then
      broken()
    end
    local b = byte(text, pos)
    pos = pos + 1
    if b < 128 then
      if i == 9 and b > 1 then
        broken()
      end
      return value + b * scale, pos
    end
    value = value + (b - 128) * scale
    scale = scale * 128
  end
  broken()
end

-- Reads a field of the message that ends at last. Returns its number, its wire type, the position of its value, the position after
-- it, and the value if it is a varint.
local function read_field(text, pos, last)
  fields_left = fields_left - 1
  if fields_left < 0 then
    refuse("the message holds more than " .. MAX_VALUES .. " fields")
  end
  local tag
  tag, pos = read_varint(text, pos, last)
  local number, wire = floor(tag / 8), tag % 8
  local after, value
  if number == 0 or number >= 2 ^ 29 then
    broken()
  elseif wire == BYTES then
    value, pos = read_varint(text, pos, last)
    after = pos + value
  elseif wire == VARINT then
    value, after = read_varint(text, pos, last)
  elseif wire == FIXED64 then
    after = pos + 8
  elseif wire == FIXED32 then
    after = pos + 4
  else
    broken()
  end
  if after > last + 1 then
    broken()
  end
  return number, wire, pos, after, value
end

local function expect(wire, wanted)
  if wire ~= wanted then
    broken()
  end
end

-- Returns the string at first..last-1, which protobuf requires to be UTF-8.
local function read_text(text, wire, first, after)
  expect(wire, BYTES)
  local value = sub(text, first, after - 1)
  if not is_utf8(value) then
    refuse("the body is not a valid protobuf message: a string is not UTF-8")
  end
  return value
end

-- Takes the one message out of a gRPC body, which is a flag, a length and the message. Returns the position of its first byte.
local function frame_start(body)
  if #body < 5 then
    refuse("the body is not one gRPC message")
  elseif byte(body, 1) ~= 0 then
    refuse("compressed gRPC messages are not supported", UNSUPPORTED)
  end
  local a, b, c, d = byte(body, 2, 5)
  if ((a * 256 + b) * 256 + c) * 256 + d ~= #body - 5 then
    refuse("the body is not one gRPC message")
  end
  return 6
end

local function frame(message)
  local n = #message
  return char(0, floor(n / 2 ^ 24), floor(n / 2 ^ 16) % 256, floor(n / 2 ^ 8) % 256, n % 256) .. message
end

---------------------------------------------------------------------------------------------------------------------------------
-- Digest of a row: crc + 2^32 * (total mod 2^20), where crc is the CRC-32 of all texts of the row with their lengths in front, in the
-- order of the tensors' names, and total is the number of their bytes. serving/runtime computes the same.

-- Tables for eight bytes a step, one after the other: https://create.stephan-brumme.com/crc32/#slicing-by-8-overview
local CRC = ffi.new("int32_t [2048]")
for i = 0, 255 do
  local crc = i
  for _ = 1, 8 do
    crc = bxor(rshift(crc, 1), band(0xEDB88320, -band(crc, 1)))
  end
  CRC[i] = crc
end
for i = 0, 1791 do
  CRC[i + 256] = bxor(rshift(CRC[i], 8), CRC[band(CRC[i], 255)])
end

-- Continues a CRC-32 that is kept inverted, as a signed number.
local function crc_text(crc, text)
  local length = #text
  local words = ffi.cast(INT32, text)
  local pairs_of_words = rshift(length, 3)
  for i = 0, pairs_of_words - 1 do
    local one, two = bxor(words[2 * i], crc), words[2 * i + 1]
    crc = bxor(
      bxor(CRC[1792 + band(one, 255)], CRC[1536 + band(rshift(one, 8), 255)]),
      bxor(CRC[1280 + band(rshift(one, 16), 255)], CRC[1024 + rshift(one, 24)]),
      bxor(CRC[768 + band(two, 255)], CRC[512 + band(rshift(two, 8), 255)]),
      bxor(CRC[256 + band(rshift(two, 16), 255)], CRC[rshift(two, 24)])
    )
  end
  local bytes = ffi.cast(UINT8, text)
  for i = pairs_of_words * 8, length - 1 do
    crc = bxor(rshift(crc, 8), CRC[band(bxor(crc, bytes[i]), 255)])
  end
  return crc
end

local function crc_length(crc, length)
  for _ = 1, 4 do
    crc = bxor(rshift(crc, 8), CRC[band(bxor(crc, length), 255)])
    length = rshift(length, 8)
  end
  return crc
end

-- Returns the digest of a row.
local function row_digest(tensors, row)
  local crc, total = -1, 0
  for i = 1, #tensors do
    local text = tensors[i][row]
    crc = crc_text(crc_length(crc, #text), text)
    total = total + #text
  end
  return bnot(crc) % 2 ^ 32 + 2 ^ 32 * (total % 2 ^ 20)
end

-- Writes digests as one text: that is what is kept between request and answer, and compared.
local function digests_text(digests)
  for i = 1, #digests do
    digests[i] = format("%.0f", digests[i])
  end
  return concat(digests, ",")
end

-- Returns the digests of all rows, for columns of texts in the order of the tensors' names.
local function column_digests(columns)
  local digests = {}
  for row = 1, #columns[1] do
    digests[row] = row_digest(columns, row)
  end
  return digests_text(digests)
end

-- Returns the digests of a request's rows, or "" if its inputs are not those of the ensemble: then Triton refuses it.
local function request_digests(ensemble, tensors)
  local names, by_name, columns = ensemble.inputs, {}, {}
  for _, tensor in ipairs(tensors) do
    by_name[tensor.name] = tensor
  end
  for i, name in ipairs(names) do
    local tensor = by_name[name]
    if not tensor or tensor.datatype ~= "BYTES" or #tensor.shape ~= 2 or tensor.shape[2] ~= 1 or not tensor.texts then
      return ""
    end
    columns[i] = tensor.texts
    if #columns[i] ~= #columns[1] then
      return ""
    end
  end
  return #tensors == #names and column_digests(columns) or ""
end

---------------------------------------------------------------------------------------------------------------------------------
-- Models of the repository.

local STEPS = { "_preprocess", "_model", "_postprocess" }

-- Our ensembles by name: {inputs = sorted names, max_rows, time = when the manifest was read}.
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
  return { inputs = names, max_rows = fields.max_batch_size or MAX_VALUES }
end

-- Returns an ensemble of ours, or nil. Only ensembles are kept: clients choose the names. What was one stays one if its manifest is
-- gone or damaged, because Triton may still serve it.
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
    ensemble.time = now
    ensembles[name] = ensemble
  end
  return ensemble
end

-- Checks the name of the model of an inference request. Returns the ensemble if it is ours.
local function check_model(name)
  if not find(name, "^[A-Za-z0-9_][A-Za-z0-9_.%-]*$") then
    refuse("'" .. shown(name) .. "' is not the name of a model")
  end
  for _, suffix in ipairs(STEPS) do
    local base = #name > #suffix and sub(name, -#suffix) == suffix and sub(name, 1, -#suffix - 1)
    if base and find_ensemble(base) then
      refuse(name .. " is a step of the ensemble " .. base .. ": send the request to " .. base, FORBIDDEN)
    end
  end
  return find_ensemble(name)
end

---------------------------------------------------------------------------------------------------------------------------------
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

---------------------------------------------------------------------------------------------------------------------------------
-- HTTP requests. A checked request is {expected = digests or "", is_asked = whether the client asked for DIGEST itself,
-- form = how the answer is written, body and header_length = what to send instead, if it differs}. It is nil for others' models.

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

local function header_length_of(text, body)
  if not text then
    return #body
  elseif not find(text, "^%d+$") or #text > 10 or tonumber(text) > #body then
    refuse("Inference-Header-Content-Length must be a number that is not more than the length of the body")
  end
  return tonumber(text)
end

local REQUESTED = '{"name":"DIGEST","parameters":{"binary_data":false}},'

-- Checks an inference request. length_header is the value of Inference-Header-Content-Length or nil.
local function check_infer(ensemble, length_header, body)
  local header_length = header_length_of(length_header, body)
  local header = header_length == #body and body or sub(body, 1, header_length)
  local root, seen, tensors = object_of(decode(header), "the body"), {}, {}
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
  local root = object_of(decode(body), "the body")
  if not ensemble then
    return nil
  end
  local nested = type(root.parameters) == "table" and root.parameters.fields or {}
  local columns = {}
  for i, name in ipairs(ensemble.inputs) do
    if nested[name] ~= nil then
      refuse_input(name, "it must stand beside parameters, not inside")
    end
    columns[#columns + 1] = generate_texts(name, root[name])
    if #columns == i and #columns[i] ~= #columns[1] then
      refuse_input(name, "it must have as many rows as the other inputs")
    end
  end
  local is_complete = #columns == #ensemble.inputs
  return { expected = is_complete and column_digests(columns) or "", is_asked = false, form = "flat" }
end

-- Checks a request to /v2/models/NAME/…/VERB.
local function check_http(name, verb, length_header, body)
  local ensemble = check_model(name)
  if verb == "infer" then
    return check_infer(ensemble, length_header, body)
  elseif verb == "generate_stream" and ensemble then
    refuse(name .. " does not stream: send the request to generate")
  end
  return check_generate(ensemble, body)
end

---------------------------------------------------------------------------------------------------------------------------------
-- gRPC requests: the message inference.ModelInferRequest of
-- https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto

-- Checks an InferParameter.
local function check_parameter_value(text, pos, after)
  while pos < after do
    local number, wire, first, next_pos = read_field(text, pos, after - 1)
    if number == 3 then
      read_text(text, wire, first, next_pos)
    elseif number <= 5 then
      expect(wire, number == 4 and FIXED64 or VARINT)
    end
    pos = next_pos
  end
end

-- Returns the key of an entry of a map of parameters.
local function read_parameter(text, wire, pos, after)
  expect(wire, BYTES)
  local key = ""
  while pos < after do
    local number, inner, first, next_pos = read_field(text, pos, after - 1)
    if number == 1 then
      key = read_text(text, inner, first, next_pos)
    elseif number == 2 then
      expect(inner, BYTES)
      check_parameter_value(text, first, next_pos)
    end
    pos = next_pos
  end
  if find(key, "\0", 1, true) then
    refuse("the name of a parameter holds a NUL character")
  end
  return key
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
  local request = { model = "", inputs = {}, outputs = {}, raw_first = {}, raw_size = {} }
  local last, fields = #text, 0
  while pos <= last do
    fields = fields + 1
    if fields > MAX_TOP_LEVEL_FIELDS then
      refuse("the message has more than " .. MAX_TOP_LEVEL_FIELDS .. " fields")
    end
    local number, wire, first, after = read_field(text, pos, last)
    if number == 1 then
      request.model = read_text(text, wire, first, after)
    elseif number == 2 or number == 3 then
      read_text(text, wire, first, after)
    elseif number == 4 then
      read_parameter(text, wire, first, after)
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

-- Field 6 (outputs) of ModelInferRequest with field 1 (name).
local REQUESTED_FIELD = "\50\8\10\6DIGEST"

-- Checks a gRPC body that holds one ModelInferRequest.
local function check_grpc(body)
  fields_left = MAX_VALUES
  local first = frame_start(body)
  local request = read_request(body, first)
  local ensemble = check_model(request.model)
  check_grpc_inputs(request, body, ensemble)
  local seen = {}
  for _, name in ipairs(request.outputs) do
    check_name("output", name, seen)
  end
  if not ensemble then
    return nil
  end
  local is_asked = seen[DIGEST] or false
  local checked = { expected = request_digests(ensemble, request.inputs), is_asked = is_asked, form = "grpc" }
  if #request.outputs > 0 and not is_asked then
    checked.body = frame(sub(body, first) .. REQUESTED_FIELD)
  end
  return checked
end

---------------------------------------------------------------------------------------------------------------------------------
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

-- Says what a client is told instead of an error of Triton. Returns the message and whether it is worth to try again; nil: as it is.
-- is_internal tells Triton's own failures from its refusals, which repeat names and words of the client.
local function translate_error(message, is_internal)
  if is_internal and (find(message, "Stub process", 1, true) or find(message, "not healthy", 1, true)) then
    return RESTARTING, true
  elseif find(message, "Traceback (most recent call last)", 1, true) or find(message, "\nAt:\n", 1, true) then
    return MODEL_FAILED, false
  elseif find(message, "has no available versions$") or find(message, "is not ready$") then
    return message, true
  end
end

---------------------------------------------------------------------------------------------------------------------------------
-- Envoy. The functions envoy_on_request and envoy_on_response are its interface. Reading a body or trailers suspends them, and ends the
-- life of the objects that they hold: handle:headers() must be called again after it.

local function percent_encoded(text)
  return (gsub(text, "[^\32-\36\38-\126]", function(c)
    return format("%%%02X", byte(c))
  end))
end

local function percent_decoded(text)
  return (gsub(text, "%%(%x%x)", function(hex)
    return char(tonumber(hex, 16))
  end))
end

local function respond_grpc(handle, code, message)
  local headers = { [":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = code }
  headers["grpc-message"] = percent_encoded(message)
  handle:respond(headers, "")
end

local function respond_http(handle, status, message)
  handle:respond({ [":status"] = status, ["content-type"] = "application/json" }, error_body(message))
end

-- What is kept of a request until its answer comes, as one text: Envoy copies a text faster than a table.
local function kept_text(checked)
  return checked.form .. (checked.is_asked and "+" or "-") .. checked.expected
end

local function read_kept(text)
  local form, asked, expected = match(text, "^(%a+)([+-])(.*)$")
  return { form = form, is_asked = asked == "+", expected = expected }
end

local function read_body(handle)
  local body = handle:body(true)
  local length = body:length()
  return length > 0 and body:getBytes(0, length) or "", body
end

local function is_grpc(headers)
  local kind = headers:get("content-type")
  return kind ~= nil and find(kind, "^application/grpc") ~= nil
end

-- Returns the check of a request that this filter must read, or nil.
local function request_check(headers)
  local path = match(headers:get(":path") or "", "^[^?]*")
  if path == SERVICE .. "ModelInfer" then
    return function(body)
      return check_grpc(body)
    end
  elseif path == SERVICE .. "ModelStreamInfer" then
    refuse("streams are not supported: use ModelInfer", UNSUPPORTED)
  elseif find(path, "%", 1, true) then
    refuse("the path holds percent-encoded characters")
  end
  local name, rest = match(path, "^/v2/models/([^/]*)/(.*)$")
  local verb = rest and match(rest, "[^/]*$")
  if verb == "infer" or verb == "generate" or verb == "generate_stream" then
    local length_header = headers:get("inference-header-content-length")
    return function(body)
      return check_http(name, verb, length_header, body)
    end
  end
end

local function on_request(handle)
  local headers = handle:headers()
  local check = request_check(headers)
  if not check then
    return
  end
  local encoding = headers:get("content-encoding")
  if encoding and encoding ~= "identity" then
    refuse("the content encoding '" .. shown(encoding) .. "' is not supported")
  end
  local text, body = read_body(handle)
  local checked = check(text)
  headers = handle:headers()
  headers:remove("accept-encoding") -- the answer must be readable, too; Triton compresses no gRPC answers unless it is told to
  if not checked then
    return
  end
  if checked.header_length then
    headers:replace("inference-header-content-length", format("%d", checked.header_length))
  end
  if checked.body then
    body:setBytes(checked.body)
  end
  handle:streamInfo():dynamicMetadata():set(METADATA, "request", kept_text(checked))
end

function envoy_on_request(handle)
  local is_done, problem = pcall(on_request, handle)
  if is_done then
    return
  end
  local refusal = type(problem) == "table" and problem
  if not refusal then
    handle:logErr("the guard failed on a request: " .. tostring(problem))
    refusal = { message = "the request could not be checked", kind = { http = "500", grpc = "13" } }
  end
  if is_grpc(handle:headers()) then
    respond_grpc(handle, refusal.kind.grpc, refusal.message)
  else
    respond_http(handle, refusal.kind.http, refusal.message)
  end
end

-- Replaces an HTTP answer by an error.
local function replace_http(handle, status, message)
  local headers = handle:headers()
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  headers:remove("inference-header-content-length")
  headers:remove("content-encoding")
  if status == "503" then
    headers:replace("retry-after", "1")
  end
  handle:body(true):setBytes(error_body(message))
end

-- Tells whoever reads Envoy's log that Triton must be restarted: from now on, its answers can belong to other requests.
local function log_unhealthy(handle, told)
  if told == RESTARTING then
    handle:logErr(UNHEALTHY)
  end
end

local function on_http_error(handle, status)
  local text = read_body(handle)
  local is_json, value = pcall(decode, text)
  local message = is_json and type(value) == "table" and value.fields and value.fields.error
  local told, is_temporary = translate_error(type(message) == "string" and message or text, find(status, "^5") ~= nil)
  log_unhealthy(handle, told)
  if told then
    replace_http(handle, is_temporary and "503" or "500", told)
  end
end

local function on_http_answer(handle, request, length_header)
  local text, body = read_body(handle)
  local is_equal, answer, header_length = check_answer(request.form, request.expected, request.is_asked, text, length_header)
  if not is_equal then
    handle:logErr("an answer was withheld: " .. answer)
    replace_http(handle, "500", answer)
  elseif not request.is_asked then
    if length_header then
      handle:headers():replace("inference-header-content-length", format("%d", header_length))
    end
    body:setBytes(answer)
  end
end

-- Translates the error of a gRPC call. fields are its trailers, or its headers if the answer has nothing else.
local function on_grpc_error(handle, fields)
  local message = fields and fields:get("grpc-message")
  local is_internal = fields and fields:get("grpc-status") == "13"
  local told, is_temporary = translate_error(percent_decoded(message or ""), is_internal)
  log_unhealthy(handle, told)
  if told then
    fields:replace("grpc-status", is_temporary and "14" or "13")
    fields:replace("grpc-message", percent_encoded(told))
  end
end

local function on_grpc_answer(handle, request)
  local text, body = read_body(handle)
  local trailers = handle:trailers()
  local status = trailers and trailers:get("grpc-status")
  if trailers and status ~= "0" then
    if #text > 0 then
      body:setBytes("")
    end
    on_grpc_error(handle, trailers)
    return
  end
  local is_equal, answer = nil, FOREIGN
  if trailers then
    is_equal, answer = check_answer("grpc", request.expected, request.is_asked, text)
  end
  if is_equal then
    if not request.is_asked then
      body:setBytes(answer)
    end
    return
  end
  handle:logErr("an answer was withheld: " .. answer)
  body:setBytes("")
  if trailers then
    trailers:replace("grpc-status", "13")
    trailers:replace("grpc-message", percent_encoded(answer))
  end
end

local function on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  local metadata = handle:streamInfo():dynamicMetadata():get(METADATA)
  local request = metadata and read_kept(metadata.request)
  if request and request.form ~= "grpc" and status == "200" then
    on_http_answer(handle, request, headers:get("inference-header-content-length"))
  elseif not is_grpc(headers) then
    if find(status, "^[45]") then
      on_http_error(handle, status)
    elseif request then
      error("an answer with the status " .. status)
    end
  elseif headers:get("grpc-status") then
    on_grpc_error(handle, headers)
  elseif request then
    on_grpc_answer(handle, request)
  else
    on_grpc_error(handle, handle:trailers())
  end
end

function envoy_on_response(handle)
  local is_done, problem = pcall(on_response, handle)
  if is_done then
    return
  end
  handle:logErr("the guard failed on an answer: " .. tostring(problem))
  replace_http(handle, "500", "the answer could not be checked")
end

-- For the tests. Envoy ignores it.
return {
  decode = decode, is_utf8 = is_utf8, crc_text = crc_text, check_http = check_http, check_grpc = check_grpc,
  check_answer = check_answer, translate_error = translate_error, percent_encoded = percent_encoded, percent_decoded = percent_decoded,
  error_body = error_body,
}
