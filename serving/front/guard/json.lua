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
  value = scale == 0 and value or value * 10 ^ scale
  if value == math.huge then
    refuse("the body has a number that is too large")
  end
  return sign * value, pos
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
