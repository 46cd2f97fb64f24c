-- The first filter where the server wants API keys: lets a request pass that has one of them. KEYS_FILE has a key in each line. It is
-- read again once a second, so that keys can be exchanged while the server runs.

local byte, find, gmatch, lower, match = string.byte, string.find, string.gmatch, string.lower, string.match
local bor, bxor = bit.bor, bit.bxor

local MISSING = "this server needs an API key: send it in the header x-api-key, or in the header authorization as a bearer token"
local WRONG = "the API key is not valid"

local keys, keys_read = {}, 0

local function current_keys()
  local now = os.time()
  if now ~= keys_read then
    keys_read = now
    local file = io.open(KEYS_FILE, "rb")
    if file then
      keys = {}
      for key in gmatch(file:read("*a") or "", "[^\n]+") do
        keys[#keys + 1] = key
      end
      file:close()
    end
  end
  return keys
end

-- Compares in a time that depends on the length of the key alone.
local function is_equal(given, key)
  local padded, difference = given .. key, bxor(#given, #key)
  for position = 1, #key do
    difference = bor(difference, bxor(byte(padded, position), byte(key, position)))
  end
  return difference == 0
end

local function is_valid(given)
  local found = false
  for _, key in ipairs(current_keys()) do
    found = is_equal(given, key) or found
  end
  return found
end

-- Returns the key that a client has sent, and removes it: Triton has no use for it. Clients of gRPC send it under a second name, too,
-- for a Triton without this filter.
local function take_key(headers)
  local key, authorization = headers:get("x-api-key"), headers:get("authorization")
  local scheme, token = match(authorization or "", "^(%a+) +(.*)$")
  headers:remove("x-api-key")
  headers:remove("triton-grpc-protocol-x-api-key")
  if scheme and lower(scheme) == "bearer" then
    headers:remove("authorization")
    return key or token
  end
  return key
end

local function refuse_request(handle, is_grpc, message)
  handle:streamInfo():dynamicMetadata():set("tritonize.guard", "reason", message)
  if is_grpc then
    handle:respond({ [":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "16", ["grpc-message"] = message }, "")
  else
    local headers = { [":status"] = "401", ["content-type"] = "application/json", ["www-authenticate"] = "Bearer" }
    handle:respond(headers, '{"error": "' .. message .. '"}')
  end
end

local function check_key(handle)
  local headers = handle:headers()
  local is_grpc = find(headers:get("content-type") or "", "^application/grpc") ~= nil
  local key = take_key(headers)
  if not key then
    refuse_request(handle, is_grpc, MISSING)
  elseif not is_valid(key) then
    refuse_request(handle, is_grpc, WRONG)
  end
end

function envoy_on_request(handle)
  local is_done, problem = pcall(check_key, handle)
  if not is_done then -- Envoy would let the request pass
    handle:logErr("the filter of API keys failed: " .. tostring(problem))
    handle:respond({ [":status"] = "500" }, "")
  end
end

-- For the tests. Envoy ignores it.
return { is_valid = is_valid }
