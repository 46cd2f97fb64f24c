-- Bytes that come in chunks of any size, cut into gRPC frames. A frame is a flag, a length and a message.

-- Bytes that wait for the rest of their frame. Each text is longer than those behind it, so that any number of tiny chunks costs little.
local function new_held()
  return { size = 0 }
end

local function hold(held, text)
  held.size = held.size + #text
  while held[1] and #held[#held] <= #text do
    text = held[#held] .. text
    held[#held] = nil
  end
  held[#held + 1] = text
end

-- Returns the held bytes with more behind them. Nothing is held then.
local function release(held, text)
  if held.size == 0 then
    return text
  end
  held[#held + 1] = text
  text = concat(held)
  for i = #held, 1, -1 do
    held[i] = nil
  end
  held.size = 0
  return text
end

-- Leaves out the bytes at the start of a chunk that belong to a frame which is too long.
local function skip_rest(held, chunk)
  local skipped = held.skip or 0
  held.skip = skipped > #chunk and skipped - #chunk or nil
  return skipped > 0 and sub(chunk, skipped + 1) or chunk
end

-- Throws away the held bytes of a frame, and those of it that are still to come.
local function give_up(held, chunk, take)
  local length, rest = held.wanted - 5, held.wanted - held.size - #chunk
  release(held, "")
  held.wanted, held.skip = nil, rest
  return take(nil, length)
end

-- Calls take with each whole frame of the held bytes and the chunk, and returns what the calls returned, joined. Keeps the rest. The
-- bytes of a frame whose length is_too_long says are thrown away: then take gets nil and the length.
local function each_frame(held, chunk, take, is_too_long)
  chunk = skip_rest(held, chunk)
  if held.size > 0 and held.size + #chunk < (held.wanted or 5) then
    if held.wanted and is_too_long(held.wanted - 5) then
      return give_up(held, chunk, take)
    end
    hold(held, chunk)
    return ""
  end
  local text, pos, taken = release(held, chunk), 1, {}
  held.wanted = nil
  while #text - pos >= 4 do
    local a, b, c, d = byte(text, pos + 1, pos + 4)
    local length = ((a * 256 + b) * 256 + c) * 256 + d
    local after = pos + 5 + length
    if is_too_long(length) then
      taken[#taken + 1] = take(nil, length)
      held.skip = after > #text + 1 and after - #text - 1 or nil
    elseif after > #text + 1 then
      held.wanted = 5 + length
      break
    else
      taken[#taken + 1] = take(sub(text, pos, after - 1))
    end
    pos = after
  end
  if pos <= #text then
    hold(held, sub(text, pos))
  end
  return #taken == 1 and taken[1] or concat(taken)
end
