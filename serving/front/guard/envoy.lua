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
  return checked.form .. (checked.is_asked and "+" or "-") .. checked.expected .. "|" .. checked_model
end

local function read_kept(text)
  local form, asked, expected, model = match(text, "^(%a+)([+-])([^|]*)|(.*)$")
  return { form = form, is_asked = asked == "+", expected = expected, model = model }
end

-- Gives a request its id: that of its header, else that of its body, else the one that Envoy has made.
local function name_request(headers)
  local id = headers:get(GIVEN_ID) or checked_id
  id = id and safe_id(id) or ""
  if id ~= "" then
    headers:replace("x-request-id", id)
  end
end

-- Tells the log of failed requests why this one failed. In a stream whose header names no id, id is that of the message.
local function note_failure(handle, reason, model, id)
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set(METADATA, "reason", (gsub(sub(reason, 1, 1000), "[^\32-\126]+", "?")))
  if model then
    metadata:set(METADATA, "model", model)
  end
  if id then
    metadata:set(METADATA, "message_id", safe_id(id))
  end
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

-- Streams by their number, for the half of the filter that reads the answers. It may begin after the half that reads the requests has
-- ended, so those are kept until then, or until Envoy has given up the request.
local streams, stream_count = setmetatable({}, { __mode = "v" }), 0
local half_closed, next_purge = {}, 0
local KEPT_SECONDS = 1200

local function keep_stream(number, stream)
  local now = os.time()
  half_closed[number] = { stream = stream, time = now }
  if now >= next_purge then
    next_purge = now + 60
    for other, kept in pairs(half_closed) do
      half_closed[other] = now - kept.time < KEPT_SECONDS and kept or nil
    end
  end
end

local function take_stream(number)
  local stream = streams[tonumber(number)]
  half_closed[tonumber(number)] = nil
  if not stream then
    error("a stream is not known")
  end
  stream.is_answering = true
  return stream
end

-- Lets the bytes pass that take returns for a chunk of a stream. Envoy also sets a content length, which has no meaning for a stream.
local function pass_chunk(handle, chunk, take, stream)
  local length = chunk:length()
  local text = length > 0 and chunk:getBytes(0, length) or ""
  local passed = take(stream, text)
  if passed ~= text then
    chunk:setBytes(passed)
  end
  if stream.failure then
    note_failure(handle, stream.failure.message, stream.failure.model, not stream.is_named and stream.failure.id)
    stream.failure = nil
  end
  if stream.is_unhealthy then
    handle:logErr(UNHEALTHY)
    stream.is_unhealthy = false
  end
end

-- Passes all chunks of one direction of a stream. Envoy would let the rest pass after an error, so nothing passes after one.
local function pass_chunks(handle, take, stream)
  local has_failed = false
  for chunk in handle:bodyChunks() do
    local is_done, problem = true, nil
    if not has_failed then
      is_done, problem = pcall(pass_chunk, handle, chunk, take, stream)
    end
    if not is_done then
      handle:logErr("the guard failed on a stream: " .. tostring(type(problem) == "table" and problem.message or problem))
      has_failed = true
    end
    if has_failed then
      chunk:setBytes("")
    end
  end
end

local function on_stream_requests(handle, headers)
  local stream, number = new_stream(), stream_count + 1
  stream.is_named, stream.wants_status = headers:get(GIVEN_ID) ~= nil, headers:get("triton_grpc_error") == "true"
  headers:remove("triton_grpc_error") -- Triton 2.51 would end the stream before its client does, and then can end itself
  stream_count = number
  streams[number] = stream
  handle:streamInfo():dynamicMetadata():set(METADATA, "stream", format("%d", number))
  pass_chunks(handle, take_requests, stream)
  stream.is_half_closed = true
  if not stream.is_answering then
    keep_stream(number, stream)
  end
end

-- Triton traces every request that has a traceparent, also if its client says that it does not trace it: the last bit of the flags. Such
-- a one is kept under another name, for the access log.
local function hide_unsampled_trace(headers)
  local parent = headers:get("traceparent")
  if parent and not find(parent, "^%x%x%-%x+%-%x+%-%x[13579bBdDfF]") then
    headers:replace("x-unsampled-traceparent", parent)
    headers:remove("traceparent")
  end
end

local function check_encoding(headers)
  local encoding = headers:get("content-encoding")
  if encoding and encoding ~= "identity" then
    refuse("the content encoding '" .. shown(encoding) .. "' is not supported")
  end
end

local function on_request(handle)
  checked_model, checked_id = nil, nil
  local headers = handle:headers()
  name_request(headers)
  hide_unsampled_trace(headers)
  if match(headers:get(":path") or "", "^[^?]*") == SERVICE .. "ModelStreamInfer" then
    check_encoding(headers)
    headers:remove("grpc-accept-encoding") -- the answers must be readable
    on_stream_requests(handle, headers)
    return
  end
  local check = request_check(headers)
  if not check then
    return
  end
  check_encoding(headers)
  local text, body = read_body(handle)
  checked_model, checked_id = nil, nil -- other requests were checked while the body was read
  local checked = check(text)
  headers = handle:headers()
  if checked_id then
    name_request(headers)
  end
  headers:remove("accept-encoding") -- the answer must be readable, too; Triton compresses no gRPC answers unless it is told to
  if not checked then
    if is_grpc(headers) then -- its path does not tell the model
      handle:streamInfo():dynamicMetadata():set(METADATA, "model", checked_model)
    end
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
    refusal = { message = "the request could not be checked", kind = FAILED["13"] }
  end
  note_failure(handle, refusal.message, checked_model)
  name_request(handle:headers())
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

local function on_http_error(handle, status, model)
  local text = read_body(handle)
  local is_json, value = pcall(decode, (gsub(text, "^data: ", "")))
  local message = is_json and type(value) == "table" and value.fields and value.fields.error
  message = type(message) == "string" and message or text
  local told, kind = translate_error(message, find(status, "^5") ~= nil)
  log_unhealthy(handle, told)
  note_failure(handle, told or message, model)
  if told then
    replace_http(handle, kind.http, told)
  end
end

local function on_http_answer(handle, request, length_header)
  local text, body = read_body(handle)
  local is_equal, answer, header_length = check_answer(request.form, request.expected, request.is_asked, text, length_header)
  if not is_equal then
    handle:logErr("an answer was withheld: " .. answer)
    note_failure(handle, answer, request.model)
    replace_http(handle, "500", answer)
  elseif not request.is_asked then
    if length_header then
      handle:headers():replace("inference-header-content-length", format("%d", header_length))
    end
    body:setBytes(answer)
  end
end

-- Translates the error of a gRPC call. fields are its trailers, or its headers if the answer has nothing else. id: as for note_failure.
local function on_grpc_error(handle, fields, model, id)
  local message = fields and fields:get("grpc-message")
  local is_internal = fields and fields:get("grpc-status") == "13"
  local decoded = percent_decoded(message or "")
  local told, kind = translate_error(decoded, is_internal)
  log_unhealthy(handle, told)
  if fields and fields:get("grpc-status") ~= "0" then
    note_failure(handle, told or decoded, model or match(decoded, "^Request for unknown model: '([^']+)'"), id)
  end
  if told then
    fields:replace("grpc-status", kind.grpc)
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
    on_grpc_error(handle, trailers, request.model)
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
  note_failure(handle, answer, request.model)
  body:setBytes("")
  if trailers then
    trailers:replace("grpc-status", "13")
    trailers:replace("grpc-message", percent_encoded(answer))
  end
end

-- Translates the status of a stream, in its trailers, or in its headers if it has nothing else. A client can ask for its first error.
local function on_stream_end(handle, fields, stream)
  local status = stream.status
  if status and fields and fields:get("grpc-status") == "0" then
    fields:replace("grpc-status", status.code)
    fields:replace("grpc-message", percent_encoded(status.message))
  else
    on_grpc_error(handle, fields, stream.model, not stream.is_named and stream.id)
  end
end

local function is_event_stream(headers)
  return find(headers:get("content-type") or "", "^text/event%-stream") ~= nil
end

local function on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  local metadata = handle:streamInfo():dynamicMetadata():get(METADATA)
  local request = metadata and metadata.request and read_kept(metadata.request)
  if request and request.form ~= "grpc" and status == "200" then
    on_http_answer(handle, request, headers:get("inference-header-content-length"))
  elseif status == "200" and is_event_stream(headers) then
    pass_chunks(handle, take_events, new_stream())
  elseif not is_grpc(headers) then
    if find(status, "^[45]") then
      on_http_error(handle, status, request and request.model)
    elseif request then
      error("an answer with the status " .. status)
    end
  elseif metadata and metadata.stream then
    local stream = take_stream(metadata.stream)
    if headers:get("grpc-status") then
      on_stream_end(handle, headers, stream)
    else
      pass_chunks(handle, take_answers, stream)
      on_stream_end(handle, handle:trailers(), stream)
    end
  elseif headers:get("grpc-status") then
    on_grpc_error(handle, headers, request and request.model)
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
  note_failure(handle, "the answer could not be checked")
  replace_http(handle, "500", "the answer could not be checked")
end

-- For the tests. Envoy ignores it.
return {
  decode = decode, is_utf8 = is_utf8, crc_text = crc_text, check_http = check_http, check_grpc = check_grpc,
  check_answer = check_answer, translate_error = translate_error, percent_encoded = percent_encoded, percent_decoded = percent_decoded,
  error_body = error_body, new_stream = new_stream, take_requests = take_requests, take_answers = take_answers, take_events = take_events,
}
