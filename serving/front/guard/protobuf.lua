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
