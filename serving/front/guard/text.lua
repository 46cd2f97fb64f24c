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
