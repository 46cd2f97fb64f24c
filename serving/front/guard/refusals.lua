-- The filter in front of Triton that reads requests and answers. It runs inside Envoy (LuaJIT 2.1), once per worker thread.
--
-- Envoy's configuration limits sizes, headers, connections and paths, buffers each request, and decompresses its body. This filter
-- does what the configuration cannot say, because it depends on the body. Each check exists for a reason:
--
--   JSON depth and number of values   Triton's parser recurses: deep nesting overflows its stack and ends the server.
--   duplicate keys, NUL in names      Two readers of one text must see the same request: this filter and Triton.
--   shapes and element counts         A shape such as [1, 2^61] overflows Triton's size computation and ends the server.
--   sizes of binary data              A wrong length prefix in one request fails the good requests of its batch.
--   classification extension          It ends Triton with SIGFPE where an output holds strings.
--   shared memory                     A client could name a region of the server and read other clients' texts.
--   steps of our ensembles            Steps trust the tensors of the step before. Only the ensemble is for clients.
--   digest of the texts               A process that was paused can answer with the texts of another request. The first step computes
--                                     a digest of the texts, and the ensemble returns it as the output DIGEST. This filter computes
--                                     it too, from the request, and lets an answer pass only if the two are equal.
--   messages of a stream              Each is a request: streams.lua says what becomes of a harmful one.
--   error texts                       A model that is restarting is a reason to try again (503, UNAVAILABLE), not "not found".
--                                     Stack traces and paths of the server are not for clients.
--
-- A request that fails a check is refused before Triton sees it: HTTP 400 or 403, gRPC INVALID_ARGUMENT, PERMISSION_DENIED or
-- UNIMPLEMENTED. An error inside the filter refuses the request too, and withholds the answer: Envoy alone would let both pass.
--
-- The files of this folder are one chunk of Lua, in the order that serving/front/bootstrap.py names them: each sees the local names of
-- those before it. The configuration sets globals in front of the chunk: REPOSITORY, the path of the model repository; MAX_REQUEST_BYTES;
-- GIVEN_ID, a header, and LONGEST_ID, see serving/front/request_ids.py; STOP_FILE, the path of a file that says that the server stops, or nil; STREAMING_ENDPOINT, that of the probe of models that stream; and
-- FAILURES, the gRPC code of each message of a model about a failure that is not the request's.

local bit = require("bit")
local ffi = require("ffi")

local band, bor, bxor, bnot, lshift, rshift = bit.band, bit.bor, bit.bxor, bit.bnot, bit.lshift, bit.rshift
local byte, char, find, format, sub = string.byte, string.char, string.find, string.format, string.sub
local gmatch, gsub, match = string.gmatch, string.gsub, string.match
local concat, floor, sort = table.concat, math.floor, table.sort

local MAX_DEPTH = 64
local MAX_VALUES = 200000
local MAX_TOP_LEVEL_FIELDS = 10000
local MAX_ELEMENTS = 2 ^ 31
local MAX_DIMS = 64
local MANIFEST_SECONDS = 5
local DIGEST = "DIGEST"
local METADATA = "tritonize.guard"
local SERVICE = "/inference.GRPCInferenceService/"
local RESTARTING = "the server is restarting: try again"
local STOPPING = "the server is starting, restarting or stopping"
local MODEL_FAILED = "the model failed: the server's log tells why"
local UNHEALTHY = "Triton gave up a stub process that is not healthy"
local FOREIGN = "the answer belongs to another request"
local NOT_COMPARABLE = "the answer could not be compared with the request: its inputs are not those of the model"

local UINT8, INT32, UINT32 = ffi.typeof("const uint8_t *"), ffi.typeof("const int32_t *"), ffi.typeof("const uint32_t *")
local BUFFER = ffi.typeof("uint8_t [?]")

-- Refusals. A check that fails raises a table; envoy.lua turns it into a reply.

-- HTTP status and gRPC code of each kind of refusal.
local INVALID = { http = "400", grpc = "3" }
local FORBIDDEN = { http = "403", grpc = "7" }
local UNSUPPORTED = { http = "400", grpc = "12" }
local EXHAUSTED = { http = "503", grpc = "8" }
local UNAVAILABLE = { http = "503", grpc = "14" }

-- The same of each kind of failure that is not the request's, by its gRPC code. A chunk of Lua has 200 local names at most: this is one.
local FAILED = { ["4"] = { http = "504", grpc = "4" }, ["13"] = { http = "500", grpc = "13" }, ["14"] = UNAVAILABLE }

local function refuse(message, kind)
  error({ message = message, kind = kind or INVALID }, 0)
end

-- Makes a client's text safe for a message: printable ASCII, at most 100 characters.
local function shown(text)
  return (gsub(sub(text, 1, 100), "[^\32-\126]", "?"))
end

-- Makes the id that a client gives a request safe for headers and logs. It is empty if nothing is left.
local function safe_id(text)
  return match(gsub(sub(text, 1, LONGEST_ID), "[^\32-\126]", "?"), "^ *(.-) *$")
end

local function refuse_input(name, problem)
  refuse("input '" .. shown(name) .. "': " .. problem)
end
