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
