-- Streams. ModelStreamInfer: each message of the client is checked like a request before it passes; the answers pass as they come.
-- generate_stream: the request is checked like that of generate; the events pass as they come.
--
-- The headers of a stream have passed before its first message comes, so a refusal cannot end the stream. And Triton 2.51 ends with an
-- assertion if it refuses a request itself while it writes other answers of the same stream. So a message that is refused is replaced by a
-- request that Triton accepts and the model refuses, with an id of ours. The answer to it becomes an error with our message and the id of
-- the client's request. The other requests of the stream go on. Where the first message of a stream is not for a model that streams,
-- there is no such model to ask: then all messages of the stream are refused, which Triton does.
--
-- DIGEST is in each answer of a model that streams. Its client compares it: the guard does not.

-- A chunk of Lua has room for 200 local names, so most of these are local to a block.
local new_stream, pending_refusal, take_requests, take_answers, take_events
do

-- Requests of one stream without their last answer. Further ones are refused, and after too many refusals that the client does not read,
-- the rest of its stream is thrown away.
local MAX_RUNNING, MAX_UNANSWERED = 128, 1024
local THROWN_AWAY = "the stream has " .. MAX_UNANSWERED .. " requests that are not answered yet: the rest of it is thrown away"
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

-- A stream: running = requests without their last answer, refused = what the client is told by the number in the id of ours, model = the
-- name of the streaming model that it began with, told = ids of requests that were told that the server stops.
function new_stream()
  return { requests = new_held(), answers = new_held(), running = 0, refused = {}, refusals = 0, told = {} }
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

local OWN_ID = "\1refused "
local REFUSED_TENSORS = bytes_field(5, bytes_field(1, "text_input") .. bytes_field(2, "BYTES") .. "\24\1")
  .. bytes_field(5, bytes_field(1, "sampling_parameters") .. bytes_field(2, "BYTES") .. "\24\1")
  .. bytes_field(7, "\0\0\0\0") .. bytes_field(7, "\1\0\0\0{")

-- Returns a request with broken JSON, in place of one that is refused. Without a model, Triton refuses it: a name has no space.
local function refused_request(stream, refusal)
  local number = stream.refusals + 1
  stream.refusals = number
  stream.refused[number] = refusal
  return frame(bytes_field(1, stream.model or " ") .. bytes_field(3, OWN_ID .. number) .. REFUSED_TENSORS .. ASK_FINAL)
end

-- Returns the oldest refusal that Triton has not answered, for a stream that Triton ends at its first error because the client asked so.
function pending_refusal(stream)
  for number = 1, stream.refusals do
    if stream.refused[number] then
      return stream.refused[number]
    end
  end
end

local function memory_is_short()
  return collectgarbage("count") > MAX_KIB and collectgarbage() and collectgarbage("count") > MAX_KIB
end

-- Checks a message of a stream; body is nil if it is too long. Returns whether the client asked for last answers without tensors.
local function check_message(stream, body, length)
  if stop_state() ~= "" then
    refuse(STOPPING, UNAVAILABLE)
  elseif stream.running > MAX_RUNNING then
    refuse("the stream has " .. MAX_RUNNING .. " requests that are not answered yet: read their answers first", EXHAUSTED)
  elseif not body and length > MAX_REQUEST_BYTES then
    refuse(format("the request is larger than the %g MiB that the server accepts", MAX_REQUEST_BYTES / 2 ^ 20))
  elseif not body then
    refuse("the server is busy: its memory is full", EXHAUSTED)
  end
  local model, passes_empty = check_streamed(body)
  if stream.is_refused then
    refuse("the first request of this stream was refused: open another stream")
  end
  stream.model = model
  return passes_empty
end

-- Returns what passes instead of a message: itself, its refusal, or nothing.
local function take_request(stream, body, length)
  stream.running = stream.running + 1
  if stream.running > MAX_UNANSWERED then
    stream.is_closed = true
    stream.failure = { message = THROWN_AWAY, model = stream.model }
    return ""
  end
  checked_model, checked_id, streaming_model = nil, "", nil
  local is_done, problem = pcall(check_message, stream, body, length)
  if is_done then
    stream.passes_empty = stream.passes_empty or problem
    return frame(sub(body, 6) .. ASK_FINAL)
  elseif type(problem) ~= "table" then
    error(problem, 0)
  end
  stream.failure = { message = problem.message, model = checked_model }
  stream.is_refused = stream.is_refused or not (stream.model or streaming_model)
  stream.model = not stream.is_refused and (stream.model or streaming_model) or nil
  return refused_request(stream, { id = checked_id, message = problem.message, code = problem.kind.grpc })
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

local function error_answer(answer, id, message)
  local mark = answer.is_last and answer.is_marked and bytes_field(4, FINAL) or ""
  return frame(bytes_field(1, message) .. bytes_field(2, bytes_field(3, id) .. mark))
end

-- Says what a client is told instead of an error in a stream, or nil.
local function translate_streamed(stream, message)
  local told = translate_error(message, find(message, "^Stub process") ~= nil)
  stream.failure, stream.is_unhealthy = { message = told or message }, told == RESTARTING
  return told
end

-- Returns the number of the refusal that an answer belongs to, or nil.
local function refusal_number(stream, id)
  local number = sub(id, 1, #OWN_ID) == OWN_ID and tonumber(sub(id, #OWN_ID + 1))
  return number and stream.refused[number] ~= nil and number or nil
end

-- Returns what passes instead of an answer: itself, an error, or nothing.
local function take_answer(stream, body)
  local answer = read_streamed_answer(body)
  local message, number = answer.error, refusal_number(stream, answer.id)
  answer.is_last = answer.is_last or message and not answer.is_marked
  if answer.is_last then
    stream.running = stream.running - 1
  end
  if number then
    local refusal = stream.refused[number]
    stream.refused[number] = not answer.is_last and { id = refusal.id } or nil
    return refusal.message and error_answer(answer, refusal.id, refusal.message) or ""
  elseif message then
    local told = translate_streamed(stream, message)
    return told and error_answer(answer, answer.id, told) or body
  elseif stop_state() == "cancelled" then
    local is_told = stream.told[answer.id]
    stream.told[answer.id], answer.is_last, answer.is_marked = true, true, true
    return is_told and "" or error_answer(answer, answer.id, STOPPING)
  end
  return answer.is_last and answer.is_empty and not stream.passes_empty and "" or body
end

-- Takes a chunk of Triton's messages. Returns the bytes that pass.
function take_answers(stream, chunk)
  local notice = ""
  if stream.is_closed and not stream.has_notice then
    stream.has_notice, notice = true, error_answer({}, "", THROWN_AWAY)
  end
  return notice .. each_frame(stream.answers, chunk, function(body)
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
