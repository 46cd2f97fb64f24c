-- Streams. ModelStreamInfer: each message of the client is checked like a request before it passes; the answers pass as they come.
-- generate_stream: the request is checked like that of generate; the events pass as they come.
--
-- Triton 2.51 ends with an assertion or a segmentation fault if a client leaves a stream in which several requests run, and if it refuses
-- a request itself while another one of the stream runs. So Triton gets one request of a stream at a time. The next one may follow the
-- last answer. One that comes before it is refused. It cannot wait: a filter changes the bytes of a client only when they come, so
-- nothing would send a request on when the last answer has passed.
--
-- The headers of a stream have passed before its first message comes, so a refusal cannot end the stream: it is an answer with an error
-- message and the id of the request, and the other requests of the stream go on. Beside a running request, it goes with the next answer
-- from Triton. Without one, a request goes to Triton that the model refuses, or Triton where no streaming model is known; the answer to
-- it becomes the refusal.
--
-- DIGEST is in each answer of a model that streams. Its client compares it: the guard does not.

-- A chunk of Lua has room for 200 local names, so most of these are local to a block.
local new_stream, take_requests, take_answers, take_events
do

-- Refusals of one stream that wait for the next answer. After so many, the rest of the stream is thrown away.
local MAX_REFUSALS = 128
local THROWN_AWAY = "the stream has " .. MAX_REFUSALS .. " refused requests beside the running one: the rest of it is thrown away"
local STILL_RUNNING = "a request of this stream is still running: wait for its last answer, or open another stream"
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

-- A stream: is_running = whether Triton has a request of it, refusal = what becomes of the answer to that request if it stands for a
-- refused one, waiting = frames of refusals that go with the next answer, model = the name of the last streaming model, id = that of the request
-- that Triton has or had last.
function new_stream()
  return { requests = new_held(), answers = new_held(), waiting = {} }
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

-- An answer that is an error. It is the last one of its request.
local function error_answer(id, message)
  return frame(bytes_field(1, message) .. bytes_field(2, bytes_field(3, id) .. bytes_field(4, FINAL)))
end

local REFUSED_TENSORS = bytes_field(5, bytes_field(1, "text_input") .. bytes_field(2, "BYTES") .. "\24\1")
  .. bytes_field(5, bytes_field(1, "sampling_parameters") .. bytes_field(2, "BYTES") .. "\24\1")
  .. bytes_field(7, "\0\0\0\0") .. bytes_field(7, "\1\0\0\0{")

-- Returns what passes instead of a message that is refused: nothing, or a request with broken JSON, or one to a name that no model has.
local function refused_request(stream, id, message, kind)
  stream.failure = { message = message, model = checked_model, id = id }
  if not stream.is_running then
    stream.is_running, stream.id, stream.refusal = true, id, { id = id, message = message, code = kind.grpc }
    return frame(bytes_field(1, stream.model or " ") .. REFUSED_TENSORS .. ASK_FINAL)
  end
  local waiting = stream.waiting
  stream.is_closed = #waiting == MAX_REFUSALS
  waiting[#waiting + 1] = stream.is_closed and error_answer("", THROWN_AWAY) or error_answer(id, message)
  return ""
end

local function memory_is_short()
  return collectgarbage("count") > MAX_KIB and collectgarbage() and collectgarbage("count") > MAX_KIB
end

-- Checks a message of a stream; body is nil if it is too long. Returns whether the client asked for last answers without tensors.
local function check_message(stream, body, length)
  if stop_state() ~= "" then
    refuse(STOPPING, UNAVAILABLE)
  elseif not body and length > MAX_REQUEST_BYTES then
    refuse(format("the request is larger than the %g MiB that the server accepts", MAX_REQUEST_BYTES / 2 ^ 20))
  elseif not body then
    refuse("the server is busy: its memory is full", EXHAUSTED)
  end
  local model, passes_empty = check_streamed(body)
  if stream.is_running then
    refuse(STILL_RUNNING, EXHAUSTED)
  end
  return model, passes_empty
end

-- Returns what passes instead of a message: itself, its refusal, or nothing.
local function take_request(stream, body, length)
  checked_model, checked_id, streaming_model = nil, "", nil
  local is_done, problem, passes_empty = pcall(check_message, stream, body, length)
  if is_done then
    stream.model, stream.id, stream.is_running, stream.passes_empty = problem, checked_id, true, passes_empty
    stream.running_model = problem
    return frame(sub(body, 6) .. ASK_FINAL)
  elseif type(problem) ~= "table" then
    error(problem, 0)
  end
  stream.model = streaming_model or stream.model
  return refused_request(stream, checked_id, problem.message, problem.kind)
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

-- Says what a client is told instead of an error in a stream, or nil; and the code of the error.
local function translate_streamed(stream, message)
  local told, kind = translate_error(message, find(message, "^Stub process") ~= nil)
  stream.failure = { message = told or message, model = stream.running_model, id = stream.id }
  stream.is_unhealthy = told == RESTARTING
  return told, (kind or INVALID).grpc
end

local NOTHING = {}

-- Returns what passes instead of an answer that is an error or stands for a refusal. Where the client has sent everything and asked for
-- it, that is nothing, and the error becomes the status of the stream: Triton's answers in streams lack the code.
local function tell_error(stream, answer, body, refusal)
  local told, code
  if not refusal then
    told, code = translate_streamed(stream, answer.error)
  end
  local message = refusal and refusal.message or told or answer.error
  if stream.wants_status then
    stream.status = stream.status or { message = message, code = refusal and refusal.code or code }
    if stream.is_half_closed then
      return ""
    end
  end
  return (refusal or message ~= answer.error) and error_answer(refusal and refusal.id or answer.id, message) or body
end

-- Returns what passes instead of an answer: itself, an error, or nothing.
local function take_answer(stream, body)
  local answer = read_streamed_answer(body)
  local message, refusal = answer.error, stream.refusal
  local is_last = answer.is_last or message and not answer.is_marked
  stream.is_running = not is_last
  if refusal or message then
    stream.refusal = refusal and not is_last and NOTHING or nil
    return refusal == NOTHING and "" or tell_error(stream, answer, body, refusal)
  elseif stop_state() == "cancelled" then
    stream.refusal = not is_last and NOTHING or nil
    return error_answer(answer.id, STOPPING)
  end
  return is_last and answer.is_empty and not stream.passes_empty and "" or body
end

-- Takes a chunk of Triton's messages. Returns the bytes that pass.
function take_answers(stream, chunk)
  local waiting = ""
  if #stream.waiting > 0 then
    waiting, stream.waiting = concat(stream.waiting), {}
  end
  local passed = each_frame(stream.answers, chunk, function(body)
    return take_answer(stream, body)
  end, function()
    return false
  end)
  return waiting == "" and passed or waiting .. passed
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
