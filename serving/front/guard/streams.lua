-- Streams. ModelStreamInfer: each message of the client is checked like a request before it passes; the answers pass as they come.
-- generate_stream: the request is checked like that of generate; the events pass as they come.
--
-- The headers of a stream have passed before its first message comes, so a refusal cannot end the stream. A harmful message is replaced by
-- a request to a model that cannot exist, whose name holds the refusal; Triton's answer to it becomes an answer with the refusal as its
-- error message and the id of the request. The other requests of the stream go on.
--
-- DIGEST is in each answer of a model that streams. Its client compares it: the guard does not.

-- A chunk of Lua has room for 200 local names, so most of these are local to a block.
local new_stream, own_refusal, take_requests, take_answers, take_events
do

-- Requests of one stream without their last answer. Further ones are refused, and after too many refusals that the client does not read,
-- the rest of its stream is thrown away.
local MAX_RUNNING, MAX_UNANSWERED = 128, 1024
-- Memory of this filter at which large messages of streams are refused, in KiB: Envoy does not count it.
local MAX_KIB = 256 * 1024
local LARGE = 65536

local FINAL = "\10\21triton_final_response\18\2\8\1"
local FINAL_KEY = sub(FINAL, 1, 23)
-- A parameter of a request, as field 4 of its message: Triton then marks the end of the answers also where no tensor comes with it.
local ASK_FINAL = "\34\40\10\34triton_enable_empty_final_response\18\2\8\1"

-- What the server says when it stops: "closed" (no new requests) or "cancelled" (the running ones, too); else "". Read once a second.
local stop_text, stop_read = "", 0

local function stop_state()
  local now = os.time()
  if STOP_FILE and now ~= stop_read then
    stop_read = now
    local file = io.open(STOP_FILE, "rb")
    stop_text = file and file:read("*a") or ""
    if file then
      file:close()
    end
  end
  return stop_text
end

function new_stream()
  return { requests = new_held(), answers = new_held(), running = 0, told = {} }
end

local function varint(value)
  local bytes = ""
  while value >= 128 do
    bytes = bytes .. char(value % 128 + 128)
    value = floor(value / 128)
  end
  return bytes .. char(value)
end

-- Returns a field of bytes.
local function bytes_field(number, text)
  return varint(number * 8 + BYTES) .. varint(#text) .. text
end

-- Returns a request that Triton refuses with our message.
local function refused_request(id, refusal)
  return frame(bytes_field(1, format(" %s %s", refusal.kind.grpc, refusal.message)) .. bytes_field(3, id))
end

-- Returns the message and the gRPC code of our refusal in Triton's error; nil: it is an error of its own.
function own_refusal(text)
  local code, message = match(text, "^Request for unknown model: ' (%d+) (.*)' is not found$")
  return message, code
end

local function memory_is_short()
  return collectgarbage("count") > MAX_KIB and collectgarbage() and collectgarbage("count") > MAX_KIB
end

-- Checks whether a stream may begin another request.
local function check_running(stream)
  if stop_state() ~= "" then
    refuse(STOPPING, UNAVAILABLE)
  elseif stream.running > MAX_RUNNING then
    refuse("the stream has " .. MAX_RUNNING .. " requests that are not answered yet: read their answers first", EXHAUSTED)
  end
end

local function check_too_long(length)
  if length > MAX_REQUEST_BYTES then
    refuse(format("the request is larger than the %g MiB that the server accepts", MAX_REQUEST_BYTES / 2 ^ 20))
  end
  refuse("the server is busy: its memory is full", EXHAUSTED)
end

-- Returns what passes instead of a message: itself, its refusal, or nothing.
local function take_request(stream, body, length)
  stream.running = stream.running + 1
  if stream.running > MAX_UNANSWERED then
    stream.is_closed = true
    return ""
  end
  checked_model, checked_id = nil, ""
  local is_done, problem = pcall(function()
    check_running(stream)
    if not body then
      check_too_long(length)
    end
    return check_streamed(body)
  end)
  if is_done then
    stream.passes_empty = stream.passes_empty or problem
    return frame(sub(body, 6) .. ASK_FINAL)
  elseif type(problem) ~= "table" then
    error(problem, 0)
  end
  stream.failure = { message = problem.message, model = checked_model }
  return refused_request(checked_id, problem)
end

-- Takes a chunk of the client's messages. Returns the bytes that pass.
function take_requests(stream, chunk)
  if stream.is_closed then
    stream.requests = new_held()
    return ""
  end
  return each_frame(stream.requests, chunk, function(body, length)
    return stream.is_closed and "" or take_request(stream, body, length)
  end, function(length)
    return length > MAX_REQUEST_BYTES or length > LARGE and memory_is_short()
  end)
end

-- Reads an answer, a ModelStreamInferResponse, up to its tensors.
local function read_streamed_answer(body)
  fields_left = MAX_VALUES
  local answer, pos, last = { id = "", is_empty = true }, frame_start(body), #body
  while pos <= last do
    local number, _, first, after = read_field(body, pos, last)
    if number == 1 then
      answer.error = sub(body, first, after - 1)
    elseif number == 2 then
      local inner = first
      while inner < after and answer.is_empty do
        local field, _, value_first, value_after = read_field(body, inner, after - 1)
        if field == 3 then
          answer.id = sub(body, value_first, value_after - 1)
        elseif field == 4 and sub(body, value_first, value_first + 22) == FINAL_KEY then
          answer.is_marked, answer.is_last = true, sub(body, value_first, value_after - 1) == FINAL
        end
        answer.is_empty = field < 5
        inner = value_after
      end
    end
    pos = after
  end
  return answer
end

local function error_answer(answer, message)
  local mark = answer.is_last and answer.is_marked and bytes_field(4, FINAL) or ""
  return frame(bytes_field(1, message) .. bytes_field(2, bytes_field(3, answer.id) .. mark))
end

-- Says what a client is told instead of an error in a stream, or nil.
local function translate_streamed(stream, message)
  local own = own_refusal(message)
  local told = own or translate_error(message, find(message, "^Stub process") ~= nil)
  if not own then
    stream.failure, stream.is_unhealthy = { message = told or message }, told == RESTARTING
  end
  return told
end

-- Returns what passes instead of an answer: itself, an error, or nothing.
local function take_answer(stream, body)
  local answer = read_streamed_answer(body)
  local message = answer.error
  answer.is_last = answer.is_last or message and not answer.is_marked
  if answer.is_last then
    stream.running = stream.running - 1
  end
  if stop_state() == "cancelled" and not message then
    local is_told = stream.told[answer.id]
    stream.told[answer.id], answer.is_last, answer.is_marked = true, true, true
    return is_told and "" or error_answer(answer, STOPPING)
  end
  local told = message and translate_streamed(stream, message)
  if told then
    return error_answer(answer, told)
  end
  return answer.is_last and answer.is_empty and not message and not stream.passes_empty and "" or body
end

-- Takes a chunk of Triton's messages. Returns the bytes that pass.
function take_answers(stream, chunk)
  return each_frame(stream.answers, chunk, function(body)
    return take_answer(stream, body)
  end, function()
    return false
  end)
end

local EVENT_ERROR = 'data: {"error":'

-- Returns what passes instead of an event.
local function take_event(stream, event)
  if stream.has_ended then
    return ""
  elseif stop_state() == "cancelled" then
    stream.has_ended = true
    return "data: " .. error_body(STOPPING) .. "\n\n"
  elseif sub(event, 1, #EVENT_ERROR) ~= EVENT_ERROR then
    return event
  end
  local is_json, value = pcall(decode, sub(event, 7, -3))
  local message = is_json and type(value) == "table" and value.fields and value.fields.error
  message = type(message) == "string" and message or event
  local told = translate_streamed(stream, message)
  return told and "data: " .. error_body(told) .. "\n\n" or event
end

-- Takes a chunk of Triton's events, each of which ends with an empty line. Returns the bytes that pass.
function take_events(stream, chunk)
  local held = stream.answers
  if not find(chunk, "\n\n", 1, true) and byte(chunk, 1) ~= 10 then
    hold(held, chunk)
    return ""
  end
  local text, pos, taken = release(held, chunk), 1, {}
  local _, last = find(text, "\n\n", pos, true)
  while last do
    taken[#taken + 1] = take_event(stream, sub(text, pos, last))
    pos = last + 1
    _, last = find(text, "\n\n", pos, true)
  end
  if pos <= #text then
    hold(held, sub(text, pos))
  end
  return concat(taken)
end

end
