-- SPDX-License-Identifier: GPL-2.0-or-later
--
-- QEMU's migration handshake in Wireshark and tshark, 4.0 and newer. The
-- protocol is specified in docs/interop/migration-handshake.rst; how to use
-- this is in docs/wireshark.rst.
--
-- Lua 5.2 (Wireshark 4.0) has no operators for bits, Lua 5.4 (Wireshark 4.4)
-- has no library for them, so that neither is used here.

local qmhs = Proto("qmhs", "QEMU migration handshake")

local MAGIC, STREAM_MAGIC = "QMHS", "QEVM"
local HEADER_MIN, HEADER_MAX = 64, 4096
local PREFIX = 8
local HELLO, ACCEPT, REJECT, COMMIT, ABORT = 1, 2, 3, 4, 5
local LOADED, START, LAST_WORD = 8, 9, 10       -- after COMMIT
local HELLO_MAX, FRAME_MAX = 524288, 131072
local LATE_MAX = 16384          -- of LOADED, of LAST WORD, and of any frame on the return path
local MESSAGE, MESSAGE_MAX = 4, 512     -- of the return path: QEMU takes no larger ones
local UNKNOWN_MAX = 16          -- frames of unknown types in one direction
local JSON_DEPTH = 16
local JSON_OBJECTS, JSON_MEMBERS, JSON_NAME = 8192, 256, 255
local JSON_SHOWN = 100000       -- values that Wireshark's tree has room for
local TEXT_MAX = 300            -- of a peer's text in one line of ours

-- Of the capabilities that have channels besides the main one.
local CHANNELS = { multifd = "multifd", ["postcopy-preempt"] = "preempt" }
local MULTIFD_CHANNELS, MULTIFD_MAX = 2, 255    -- if ACCEPT does not say how many; at most

local type_names = {
    [HELLO] = "HELLO", [ACCEPT] = "ACCEPT", [REJECT] = "REJECT",
    [COMMIT] = "COMMIT", [ABORT] = "ABORT", [LAST_WORD] = "LAST WORD",
    [6] = "reserved for questions", [7] = "reserved for questions",
    [LOADED] = "LOADED", [START] = "START",
}
local is_grease = {}
for nibble = 0, 15 do
    local kind = (nibble * 16 + 10) * 257
    type_names[kind], is_grease[kind] = "grease", true
end

local f = {
    role = ProtoField.string("qmhs.role", "Sender"),
    session = ProtoField.string("qmhs.session", "Session"),
    channel = ProtoField.string("qmhs.channel", "Channel"),
    channel_index = ProtoField.uint32("qmhs.channel.index", "Channel index"),

    header_magic = ProtoField.string("qmhs.header.magic", "Magic"),
    header_reserved = ProtoField.uint16("qmhs.header.reserved", "Reserved", base.HEX),
    header_length = ProtoField.uint16("qmhs.header.length", "Header length"),
    header_session = ProtoField.guid("qmhs.header.session", "Session"),
    header_name = ProtoField.string("qmhs.header.name", "Channel name"),
    header_index = ProtoField.uint32("qmhs.header.index", "Channel index"),
    header_padding = ProtoField.bytes("qmhs.header.padding", "Reserved"),
    header_extension = ProtoField.bytes("qmhs.header.extension", "Extension (ignored)"),

    frame_length = ProtoField.uint32("qmhs.frame.length", "Length"),
    frame_type = ProtoField.uint16("qmhs.frame.type", "Type", base.DEC_HEX, type_names),
    frame_flags = ProtoField.uint16("qmhs.frame.flags", "Flags", base.HEX),
    frame_critical = ProtoField.bool("qmhs.frame.critical", "Critical", 16, nil, 0x0001),
    frame_payload = ProtoField.string("qmhs.frame.payload", "Payload"),
    frame_skipped = ProtoField.bytes("qmhs.frame.skipped", "Payload (skipped)"),

    hello_version = ProtoField.uint32("qmhs.hello.version", "Version offered"),
    hello_purpose = ProtoField.string("qmhs.hello.purpose", "Purpose"),
    hello_required = ProtoField.string("qmhs.hello.required_capability", "Required capability"),
    hello_optional = ProtoField.string("qmhs.hello.optional_capability", "Optional capability"),
    hello_ignore = ProtoField.string("qmhs.hello.ignore", "Issue to be ignored"),
    hello_bitmap = ProtoField.string("qmhs.hello.bitmap", "Dirty bitmap"),

    accept_version = ProtoField.uint32("qmhs.accept.version", "Version"),
    accept_capability = ProtoField.string("qmhs.accept.capability", "Effective capability"),
    accept_declined = ProtoField.string("qmhs.accept.declined", "Declined capability"),

    machine = ProtoField.string("qmhs.machine", "Machine"),
    arch = ProtoField.string("qmhs.arch", "Architecture"),
    qemu_version = ProtoField.string("qmhs.qemu_version", "QEMU version"),
    feature = ProtoField.string("qmhs.feature", "Feature"),
    parameter = ProtoField.string("qmhs.parameter", "Parameter"),
    message = ProtoField.string("qmhs.message", "Message"),
    issue_code = ProtoField.string("qmhs.issue.code", "Code"),
    issue_severity = ProtoField.string("qmhs.issue.severity", "Severity"),
    issue_subject = ProtoField.string("qmhs.issue.subject", "Subject"),
    issue_source = ProtoField.string("qmhs.issue.source", "On the source"),
    issue_destination = ProtoField.string("qmhs.issue.destination", "On the destination"),
    issue_message = ProtoField.string("qmhs.issue.message", "Message"),
    issues_omitted = ProtoField.uint32("qmhs.issues_omitted", "Issues omitted"),
    digest = ProtoField.string("qmhs.commit.digest", "Digest"),
    without = ProtoField.string("qmhs.commit.without", "Without capability"),
    without_reason = ProtoField.string("qmhs.commit.without_reason", "Reason"),
    guest = ProtoField.string("qmhs.last_word.guest", "Guest"),

    stream = ProtoField.bytes("qmhs.stream", "Migration stream"),
    return_path = ProtoField.bytes("qmhs.return_path", "Return path"),
    data = ProtoField.bytes("qmhs.data", "Data"),
}
qmhs.fields = f

local function expert_info(name, text, group, severity)
    return ProtoExpert.new("qmhs.expert." .. name, text, group, severity)
end

local protocol, malformed = expert.group.PROTOCOL, expert.group.MALFORMED
local answer = expert.group.RESPONSE_CODE
local note, warn, err = expert.severity.NOTE, expert.severity.WARN, expert.severity.ERROR

local x = {
    no_header = expert_info("no_header", "No channel header", protocol, warn),
    header_length = expert_info("header_length", "Bad header length", malformed, err),
    name = expert_info("channel_name", "Malformed channel name", malformed, err),
    too_long = expert_info("too_long", "Frame too long", malformed, err),
    unknown = expert_info("unknown", "Frame of an unknown type", protocol, note),
    critical = expert_info("critical", "Critical frame of an unknown type", protocol, err),
    too_many = expert_info("too_many", "Too many frames of unknown types", protocol, err),
    unexpected = expert_info("unexpected", "Frame out of place", protocol, err),
    json = expert_info("json", "Payload is not a JSON object", malformed, err),
    large = expert_info("large", "Too many values to show", protocol, note),
    reject = expert_info("reject", "Refused", answer, warn),
    abort = expert_info("abort", "Aborted", answer, warn),
    last_word = expert_info("last_word", "Failed after COMMIT", answer, warn),
    place = expert_info("place", "Channel without a place in its session", protocol, warn),
    answer = expert_info("answer", "The answer is for another channel", protocol, err),
    unanswered = expert_info("unanswered", "COMMIT before all channels were answered",
                             protocol, warn),
    without = expert_info("without", "COMMIT goes without what it must not", protocol, err),
    early = expert_info("early", "Data before COMMIT", protocol, err),
    after = expert_info("after", "Data after the end of the handshake", protocol, warn),
    missing = expert_info("missing", "Bytes are missing in the capture, or not put together",
                          protocol, warn),
}
qmhs.experts = x

---- JSON -------------------------------------------------------------------

-- By the rules of the specification, which are narrower than those of JSON.
-- Errors are thrown.
local read_value, objects

local function skip_space(text, at)
    return text:find("[^ \t\r\n]", at) or #text + 1
end

local CHARACTERS = {
    "^[\194-\223][\128-\191]", "^\224[\160-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
    "^[\225-\236\238\239][\128-\191][\128-\191]", "^\240[\144-\191][\128-\191][\128-\191]",
    "^[\241-\243][\128-\191][\128-\191][\128-\191]", "^\244[\128-\143][\128-\191][\128-\191]",
}
local NONCHARACTERS = {
    "\239\183[\144-\175]", "\239\191[\190\191]", "[\240-\244][\143\159\175\191]\191[\190\191]",
}

local function end_of_character(text, at)
    for _, pattern in ipairs(CHARACTERS) do
        local _, stop = text:find(pattern, at)
        if stop then return stop end
    end
    error("not UTF-8", 0)
end

-- Wireshark's own conversion would hide it, and ends at a zero byte in 4.4.
local function require_text(text)
    local at = text:find("[\128-\255]")
    while at do
        at = text:find("[\128-\255]", end_of_character(text, at) + 1)
    end
    for _, pattern in ipairs(NONCHARACTERS) do
        if text:find(pattern) then error("noncharacter", 0) end
    end
end

local function character(code)
    if code < 0x80 then return string.char(code) end
    local tail, room = "", 0x40
    repeat
        tail = string.char(0x80 + code % 0x40) .. tail
        code = math.floor(code / 0x40)
        room = room / 2
    until code < room
    return string.char(0x100 - 2 * room + code) .. tail
end

local function read_code(text, at)
    local digits = text:match("^u(%x%x%x%x)", at)
    if not digits then error("unknown escape", 0) end
    local code = tonumber(digits, 16)
    if code < 0xd800 or code > 0xdfff then return code, at + 5 end
    local low = tonumber(text:match("^\\u(%x%x%x%x)", at + 5) or "0", 16)
    if code > 0xdbff or low < 0xdc00 or low > 0xdfff then error("half a surrogate pair", 0) end
    return 0x10000 + (code - 0xd800) * 0x400 + low - 0xdc00, at + 11
end

local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/",
                  b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function read_escape(text, at)
    local simple = ESCAPES[text:sub(at, at)]
    if simple then return simple, at + 1 end
    local code, next_at = read_code(text, at)
    if code == 0 then error("U+0000", 0) end
    local char = character(code)
    require_text(char)
    return char, next_at
end

local function read_string(text, at)
    local parts = {}
    at = at + 1
    while true do
        local stop = text:find('["\\\0-\31]', at)
        if not stop then error("unterminated string", 0) end
        parts[#parts + 1] = text:sub(at, stop - 1)
        local char = text:sub(stop, stop)
        if char == '"' then return table.concat(parts), stop + 1 end
        if char ~= "\\" then error("control character in a string", 0) end
        parts[#parts + 1], at = read_escape(text, stop + 1)
    end
end

local function read_number(text, at)
    local minus, digits = text:match("^(%-?)(%d+)", at)
    if not digits then error("not a value", 0) end
    local limit = minus == "" and "18446744073709551615" or "9223372036854775808"
    if digits:find("^0%d") or #digits > #limit or #digits == #limit and digits > limit then
        error("not an integer as specified", 0)
    end
    return tonumber(minus .. digits), at + #minus + #digits
end

local function read_member(text, at, object, depth)
    local name, value
    if text:sub(at, at) ~= '"' then error("member without a name", 0) end
    name, at = read_string(text, at)
    if #name > JSON_NAME then error("long name", 0) end
    if object[name] ~= nil then error("duplicate member", 0) end
    at = skip_space(text, at)
    if text:sub(at, at) ~= ":" then error("member without a value", 0) end
    value, at = read_value(text, skip_space(text, at + 1), depth)
    object[name] = value
    return at
end

local function read_item(text, at, list, depth)
    local value
    value, at = read_value(text, at, depth)
    list[#list + 1] = value
    return at
end

local function read_all(text, at, closing, read_one, depth)
    local all, left = {}, closing == "}" and JSON_MEMBERS or math.huge
    if depth > JSON_DEPTH then error("nested too deeply", 0) end
    at = skip_space(text, at + 1)
    if text:sub(at, at) == closing then return all, at + 1 end
    while true do
        if left == 0 then error("too many members", 0) end
        left = left - 1
        at = skip_space(text, read_one(text, at, all, depth))
        local char = text:sub(at, at)
        if char == closing then return all, at + 1 end
        if char ~= "," then error("unterminated object or array", 0) end
        at = skip_space(text, at + 1)
    end
end

local words = { ["true"] = true, ["false"] = false, null = {} }

function read_value(text, at, depth)
    local char = text:sub(at, at)
    if char == "{" then
        objects = objects + 1
        if objects > JSON_OBJECTS then error("too many objects", 0) end
        return read_all(text, at, "}", read_member, depth + 1)
    end
    if char == "[" then return read_all(text, at, "]", read_item, depth + 1) end
    if char == '"' then return read_string(text, at) end
    local word = text:match("^%l+", at)
    if word and words[word] ~= nil then return words[word], at + #word end
    return read_number(text, at)
end

local function read_object(text)
    require_text(text)
    objects = 0
    local at = skip_space(text, 1)
    if text:sub(at, at) ~= "{" then error("not an object", 0) end
    local object
    object, at = read_value(text, at, 0)
    if skip_space(text, at) <= #text then error("something follows the object", 0) end
    return object
end

local function string_in(object, name)
    local value = object[name]
    return type(value) == "string" and value or nil
end

-- What a list has of one type. An object has no items, and a member that is
-- absent or something else is like an empty list.
local function items_in(object, name, kind)
    local list, found = object[name], {}
    for _, item in ipairs(type(list) == "table" and list or {}) do
        if type(item) == kind then found[#found + 1] = item end
    end
    return found
end

local function object_in(object, name)
    local value = object[name]
    return type(value) == "table" and value or {}
end

---- Text -------------------------------------------------------------------

-- One line of what a peer has sent, not cut within a character.
local function line_of(text)
    text = text:gsub("%c", " ")
    if #text <= TEXT_MAX then return text end
    return text:sub(1, TEXT_MAX):gsub("[\192-\247][\128-\191]*$", "") .. "..."
end

local function add_text(tree, field, range, text)
    if text then tree:add(field, range, (text:gsub("%c", " "))):set_generated() end
end

local function add_number(tree, field, range, number)
    if type(number) == "number" and number >= 0 and number < 4294967296 then
        tree:add(field, range, number):set_generated()
    end
end

local function add_texts(tree, field, range, texts)
    for _, text in ipairs(texts) do add_text(tree, field, range, text) end
end

---- Messages ---------------------------------------------------------------

local function set_of(texts)
    local set = {}
    for _, text in ipairs(texts) do set[text] = true end
    return set
end

local function add_side(tree, range, side)
    add_text(tree, f.machine, range, string_in(side, "machine"))
    add_text(tree, f.arch, range, string_in(side, "arch"))
    add_text(tree, f.qemu_version, range, string_in(side, "qemu-version"))
end

local function add_parameters(tree, range, side)
    for _, parameter in ipairs(items_in(side, "parameters", "table")) do
        add_text(tree, f.parameter, range, (string_in(parameter, "name") or "?") .. "=" ..
                 (string_in(parameter, "value") or "?"))
    end
end

local function add_issues(tree, range, message)
    for _, issue in ipairs(items_in(message, "issues", "table")) do
        local title = string_in(issue, "message") or string_in(issue, "code") or "?"
        local severity = string_in(issue, "severity") or "warning"
        local branch = tree:add(range, line_of("Issue, " .. severity .. ": " .. title))
        branch:set_generated()
        add_text(branch, f.issue_code, range, string_in(issue, "code"))
        add_text(branch, f.issue_severity, range, string_in(issue, "severity"))
        add_text(branch, f.issue_subject, range, string_in(issue, "subject"))
        add_text(branch, f.issue_source, range, string_in(issue, "source"))
        add_text(branch, f.issue_destination, range, string_in(issue, "destination"))
        add_text(branch, f.issue_message, range, string_in(issue, "message"))
    end
    add_number(tree, f.issues_omitted, range, message["issues-omitted"])
end

-- Each adds what is worth a filter, and returns what the Info column says.
local show = {}

show[HELLO] = function(tree, range, message)
    local profile = object_in(message, "profile")
    local purpose = string_in(message, "purpose") or "?"
    for _, version in ipairs(items_in(message, "versions", "number")) do
        add_number(tree, f.hello_version, range, version)
    end
    add_text(tree, f.hello_purpose, range, string_in(message, "purpose"))
    add_side(tree, range, profile)
    add_texts(tree, f.feature, range, items_in(message, "features", "string"))
    add_texts(tree, f.hello_required, range,
              items_in(profile, "required-capabilities", "string"))
    add_texts(tree, f.hello_optional, range,
              items_in(message, "optional-capabilities", "string"))
    add_texts(tree, f.hello_ignore, range, items_in(message, "ignore", "string"))
    for _, bitmap in ipairs(items_in(profile, "bitmaps", "table")) do
        add_text(tree, f.hello_bitmap, range, (string_in(bitmap, "node") or "?") .. "/" ..
                 (string_in(bitmap, "name") or "?"))
    end
    add_parameters(tree, range, profile)
    local machine = string_in(profile, "machine")
    return "HELLO purpose=" .. purpose .. (machine and " " .. machine or "")
end

show[ACCEPT] = function(tree, range, message, session)
    local capabilities = items_in(message, "capabilities", "string")
    add_number(tree, f.accept_version, range, message.version)
    add_side(tree, range, object_in(message, "peer"))
    add_texts(tree, f.feature, range, items_in(message, "features", "string"))
    add_texts(tree, f.accept_capability, range, capabilities)
    for _, declined in ipairs(items_in(message, "declined", "table")) do
        add_text(tree, f.accept_declined, range, string_in(declined, "capability"))
    end
    add_parameters(tree, range, message)
    add_issues(tree, range, message)
    return "ACCEPT session " .. (session or "?") .. " caps=" .. table.concat(capabilities, ",")
end

-- REJECT, ABORT and LAST WORD: why.
local function show_reason(tree, range, message, name, expert_field)
    local text = string_in(message, "message")
    add_text(tree, f.message, range, text)
    add_side(tree, range, object_in(message, "peer"))
    add_texts(tree, f.feature, range, items_in(message, "features", "string"))
    add_issues(tree, range, message)
    local said = name .. (text and ": " .. text or "")
    tree:add_proto_expert_info(expert_field, line_of(said))
    return said
end

show[REJECT] = function(tree, range, message)
    return show_reason(tree, range, message, "REJECT", x.reject)
end

show[ABORT] = function(tree, range, message)
    return show_reason(tree, range, message, "ABORT", x.abort)
end

show[LOADED] = function(tree, range, message)
    add_issues(tree, range, message)
    return "LOADED"
end

show[START] = function()
    return "START"
end

show[LAST_WORD] = function(tree, range, message)
    if message.loaded == true then
        add_issues(tree, range, message)
        return "LAST WORD: remarks"
    end
    add_text(tree, f.guest, range, string_in(message, "guest"))
    return show_reason(tree, range, message, "LAST WORD", x.last_word)
end

show[COMMIT] = function(tree, range, message)
    local names = {}
    add_text(tree, f.digest, range, string_in(message, "digest"))
    for _, declined in ipairs(items_in(message, "without", "table")) do
        names[#names + 1] = string_in(declined, "capability")
        add_text(tree, f.without, range, string_in(declined, "capability"))
        add_text(tree, f.without_reason, range, string_in(declined, "reason"))
    end
    return "COMMIT" .. (#names > 0 and " without " .. table.concat(names, ",") or "")
end

-- Wireshark's own view of it. It must not end ours if it fails.
local json_dissector = Dissector.get("json")

local function add_json(range, text, pinfo, tree)
    if select(2, text:gsub("[,:]", "")) > JSON_SHOWN then
        tree:add_proto_expert_info(x.large)
        return
    end
    pcall(json_dissector.call, json_dissector, range:tvb(), pinfo, tree)
end

---- State ------------------------------------------------------------------

-- A talk is a TCP connection; each of its two ways has a state, which says
-- how far its bytes have been understood. `phase` is one of
--
--   header       nothing has come yet
--   frames       frames of a main channel
--   return_path  messages that follow ACCEPT, and frames that look like one
--   data         all that follows belongs to the migration, or is not understood
--
-- The last one is for good. Of the others, the first pass keeps the state that
-- each piece began with: Wireshark shows packets again and in any order.
--
-- Field extractors, for tcp.stream, have no value when Wireshark builds no
-- tree, which is so in the first pass. So talks go by addresses and ports;
-- those of the same ones follow each other.
--
-- A session is what its ACCEPT, and the HELLO before it, say of its channels, and
-- the numbers of the packets that these have come in: a packet shown again is
-- looked at with what had happened before it. One whose HELLO was not recorded
-- is not known.
local talks, sessions = {}, {}

function qmhs.init()
    talks, sessions = {}, {}
end

local function speakers(pinfo)
    return pinfo.src_port .. " " .. tostring(pinfo.src),
           pinfo.dst_port .. " " .. tostring(pinfo.dst)
end

local function talks_of(pinfo)
    local a, b = speakers(pinfo)
    local key = a < b and a .. " " .. b or b .. " " .. a
    talks[key] = talks[key] or {}
    return talks[key]
end

-- A source always speaks first, but it need not have been recorded. If the
-- first one turns out to have a session, it is the destination.
local function new_talk(all, pinfo)
    local talk = { number = pinfo.number, source = speakers(pinfo),
                   is_ours = false, heard = {}, ways = {}, pieces = {} }
    all[#all + 1] = talk
    return talk
end

local function talk_of(pinfo)
    local all = talks_of(pinfo)
    for i = #all, 1, -1 do
        if all[i].number <= pinfo.number then return all[i] end
    end
    return new_talk(all, pinfo)
end

local function copy(state)
    local other = {}
    for name, value in pairs(state) do other[name] = value end
    return other
end

local function state_of(talk, buffer, pinfo)
    local speaker = speakers(pinfo)
    local state = talk.ways[speaker]
    if not state then
        state = { phase = "header", unknown = 0 }
        talk.ways[speaker] = state
    end
    -- Not by its length: TCP may pass less again than it did at first.
    local key = pinfo.number .. " " .. buffer:offset()
    if pinfo.visited then
        local kept = talk.pieces[key]
        state = copy(kept or state.stream or state)
        if not kept then state.frame = nil end      -- nothing comes before data
    elseif state.phase ~= "data" or state.is_first or talk.loaded then
        talk.pieces[key] = talk.pieces[key] or copy(state)
    end
    return state
end

-- From here on, nothing of this way is parsed any more.
local function become_data(state, field, title)
    state.phase, state.field, state.title, state.is_first = "data", field, title, true
end

---- Pieces of the stream ---------------------------------------------------

-- One buffer being dissected. The branch appears with the first thing in it:
-- if TCP has to come again with more, there must be none.
local Piece = {}
Piece.__index = Piece

function Piece:role()
    return speakers(self.pinfo) == self.talk.source and "source" or "destination"
end

function Piece:branch()
    if not self.item then
        self.item = self.tree:add(qmhs, self.buffer())
        self.item:add(f.role, self:role()):set_generated()
    end
    return self.item
end

function Piece:say(text)
    self.said[#self.said + 1] = line_of(text)
end

function Piece:session()
    return sessions[self.talk.session]
end

function Piece:is_first_pass()
    return not self.pinfo.visited
end

-- Whether something had happened by now that has happened in packet `number`.
function Piece:has_seen(number)
    return number ~= nil and number <= self.pinfo.number
end

-- Nobody waits for COMMIT any more: it has come, or will not be found.
local function settle(piece)
    local session = piece:session()
    if session and piece:is_first_pass() then
        session.settled = session.settled or piece.pinfo.number
    end
end

local function break_off(piece)
    become_data(piece.state, f.data, "data, not parsed")
    if piece:role() == "source" and piece.talk.name == "main" then settle(piece) end
end

local function is_early(piece)
    local session = piece:session()
    return session and not piece:has_seen(session.settled)
end

---- Channels of a session ---------------------------------------------------

-- How many channels of each name.
local function channels_of(capabilities, accept)
    local count = MULTIFD_CHANNELS
    for _, parameter in ipairs(items_in(accept, "parameters", "table")) do
        if string_in(parameter, "name") == "multifd-channels" then
            count = tonumber((string_in(parameter, "value") or ""):match("^%d+$")) or 0
        end
    end
    return { multifd = capabilities.multifd and math.min(count, MULTIFD_MAX) or 0,
             preempt = capabilities["postcopy-preempt"] and 1 or 0 }
end

local function begin_session(piece, accept)
    local talk = piece.talk
    local capabilities = set_of(items_in(accept, "capabilities", "string"))
    if not talk.session or not talk.optional or not piece:is_first_pass() then return end
    sessions[talk.session] = {
        capabilities = capabilities, optional = talk.optional,
        channels = talk.is_check and {} or channels_of(capabilities, accept),
        came = {}, answered = {},
    }
end

local function check_place(piece, branch, name, index)
    local session, key = piece:session(), name .. " " .. index
    local why
    if not piece.talk.session then
        why = "The channel is of no session"
    elseif not session then
        return
    elseif index >= (session.channels[name] or 0) then
        why = "The session has no such channel"
    elseif session.came[key] and session.came[key] ~= piece.talk
            and not (name == "preempt" and piece:has_seen(session.resumed)) then
        why = "The channel comes a second time"
    elseif name == "preempt" and piece:has_seen(session.resumed) then
        return
    elseif piece:has_seen(session.settled) then
        why = "The channel comes after COMMIT"
    else
        session.came[key] = piece.talk
        return
    end
    branch:add_proto_expert_info(x.place, why)
end

-- A source that begins with a session which was agreed on before, on another
-- connection: postcopy was interrupted, and goes on. It says no more than that.
local function find_pause(piece, session)
    local talk, known = piece.talk, sessions[session]
    if known and not talk.asked and piece:is_first_pass() and piece:has_seen(known.settled) then
        talk.resumes = true
        known.resumed = known.resumed or piece.pinfo.number
    end
end

local function check_answer(piece, branch, name, index, session)
    local asked = piece.talk.asked
    local is_main = asked.name == "main" and asked.index == 0 and not piece.talk.resumes
    if name ~= asked.name or index ~= asked.index or not is_main and session ~= asked.session then
        branch:add_proto_expert_info(x.answer, string.format(
            "The answer is for channel %s %d%s", name, index,
            session ~= asked.session and not is_main and " of another session" or ""))
    elseif not is_main and piece:session() and piece:is_first_pass() then
        local answered, key = piece:session().answered, name .. " " .. index
        answered[key] = answered[key] or piece.pinfo.number
    end
end

local function check_commit(piece, branch, commit)
    local session, wrong, missing, dropped = piece:session(), {}, {}, {}
    if not session then return end
    for _, item in ipairs(items_in(commit, "without", "table")) do
        local name = string_in(item, "capability") or "?"
        if not (CHANNELS[name] and session.optional[name] and session.capabilities[name]) then
            wrong[#wrong + 1] = name
        else
            dropped[CHANNELS[name]] = true
        end
    end
    for _, name in ipairs({ "multifd", "preempt" }) do
        for index = 0, (session.channels[name] or 0) - 1 do
            local key = name .. " " .. index
            if not dropped[name] and not piece:has_seen(session.answered[key]) then
                missing[#missing + 1] = key
            end
        end
    end
    if #wrong > 0 then
        branch:add_proto_expert_info(x.without, line_of(
            "COMMIT goes without what it must not: " .. table.concat(wrong, ", ")))
    end
    if #missing > 0 then
        branch:add_proto_expert_info(x.unanswered, line_of(
            "COMMIT, and no answer was recorded for " .. table.concat(missing, ", ")))
    end
end

---- Parsers -----------------------------------------------------------------

-- Parsers return the number of bytes that they took, at least one, or nil and
-- the number that they lack. That is SOME where a length is not known yet:
-- TCP 4.0 forgets, in its second pass, what was asked for twice in a packet.
local SOME = DESEGMENT_ONE_MORE_SEGMENT
local parse = {}

local function first_four(range)
    return range(0, math.min(4, range:len())):raw()
end

local function valid_name(raw)
    return raw:find("^[\33-\126]+\0*$") ~= nil
end

-- stringz would look for a zero byte as far as the buffer goes.
local function add_header(tree, range, name)
    tree:add(f.header_magic, range(0, 4))
    tree:add(f.header_reserved, range(4, 2))
    tree:add(f.header_length, range(6, 2))
    tree:add(f.header_session, range(8, 16))
    tree:add(f.header_name, range(24, 16), name)
    tree:add(f.header_index, range(40, 4))
    tree:add(f.header_padding, range(44, 20))
    if range:len() > HEADER_MIN then
        tree:add(f.header_extension, range(HEADER_MIN))
    end
end

local function session_text(range)
    local hex = range:bytes():tohex(true)
    if not hex:find("[^0]") then return nil end
    local dashed = hex:gsub("^(%x%x%x%x%x%x%x%x)(%x%x%x%x)(%x%x%x%x)(%x%x%x%x)", "%1-%2-%3-%4-")
    return dashed
end

function parse.header(piece, range)
    local state = piece.state
    local magic = first_four(range)
    if magic ~= MAGIC:sub(1, #magic) then
        piece:branch():add_proto_expert_info(x.no_header, magic == STREAM_MAGIC and
            "No channel header: a migration stream without a handshake" or "No channel header")
        break_off(piece)
        return parse.data(piece, range)
    end
    if range:len() < PREFIX then return nil, SOME end
    local length = range(6, 2):uint()
    if length < HEADER_MIN or length > HEADER_MAX then
        local branch = piece:branch():add(range(0, PREFIX), "Channel header")
        branch:add(f.header_magic, range(0, 4))
        branch:add(f.header_length, range(6, 2)):add_proto_expert_info(
            x.header_length, string.format("Header length is %d, not %d to %d",
                                           length, HEADER_MIN, HEADER_MAX))
        piece:say("bad header length " .. length)
        break_off(piece)
        return PREFIX
    end
    if range:len() < length then return nil, length - range:len() end

    local raw, index = range(24, 16):raw(), range(40, 4):uint()
    local name = raw:gsub("[^\33-\126].*", "")
    local session = session_text(range(8, 16))
    local talk = piece.talk
    local is_main = name == "main" and index == 0
    if session and is_main then find_pause(piece, session) end
    if session and is_main and not talk.resumes then
        talk.source = select(2, speakers(piece.pinfo))
    end
    talk.session = session or talk.session
    talk.name, talk.index = name, index
    local is_answer = piece:role() == "destination"
    local text = string.format("channel %s %d", name, index)
    if is_answer and (talk.resumes or not is_main) then text = "answer for " .. text end
    local branch = piece:branch():add(range(0, length), "Channel header: " .. text ..
        (session and ", session " .. session or ", no session"))
    add_header(branch, range(0, length), name)
    piece:say(text)
    if not valid_name(raw) then
        branch:add_proto_expert_info(x.name)
        break_off(piece)
        return length
    end
    if not is_answer then
        talk.asked = { name = name, index = index, session = session }
        if not is_main then check_place(piece, branch, name, index) end
    elseif talk.asked then
        check_answer(piece, branch, name, index, session)
    end
    if is_main and not talk.resumes then
        state.phase = "frames"
    else
        become_data(state, f.data, string.format("%s %d: data", name, index))
    end
    return length
end

local function limit_of(state, kind)
    if state.phase == "return_path" or kind == LOADED or kind == LAST_WORD then return LATE_MAX end
    return kind == HELLO and HELLO_MAX or FRAME_MAX
end

-- Before COMMIT, nobody knows what comes after it; on the return path nothing else is
-- known, nor behind the stream but for ABORT.
local function is_known(state, kind)
    if not show[kind] then return false end
    if state.phase == "return_path" then return kind == LOADED or kind == LAST_WORD end
    if state.phase == "hand_over" then return kind == START or kind == ABORT end
    return kind <= ABORT
end

-- The known types that may come next.
local function expected(piece, kind)
    local state = piece.state
    if state.phase == "hand_over" then return true end
    if state.phase == "return_path" then
        if kind == LOADED then return state.has_one_owner and not state.has_loaded end
        return state.has_late_error
    end
    if piece:role() == "destination" then return kind == ACCEPT or kind == REJECT end
    if not state.purpose then return kind == HELLO end
    return state.purpose ~= "check" and (kind == COMMIT or kind == ABORT)
end

local after_known = {}

after_known[HELLO] = function(piece, _, message)
    local talk = piece.talk
    piece.state.purpose = string_in(message, "purpose") or "?"
    talk.is_check = piece.state.purpose == "check"
    talk.optional = set_of(items_in(message, "optional-capabilities", "string"))
    for _, name in ipairs(items_in(object_in(message, "profile"), "required-capabilities",
                                   "string")) do
        talk.optional[name] = nil
    end
end

after_known[ACCEPT] = function(piece, _, message)
    local state = piece.state
    begin_session(piece, message)
    state.phase, state.unknown = "return_path", 0
    local features = set_of(items_in(message, "features", "string"))
    state.has_late_error = features["late-error"] or false
    state.has_one_owner = features["one-owner"] or false
end

after_known[LOADED] = function(piece)
    local talk = piece.talk
    piece.state.has_loaded = true
    if piece:is_first_pass() then talk.loaded = talk.loaded or piece.pinfo.number end
end

after_known[COMMIT] = function(piece, branch, message)
    check_commit(piece, branch, message)
    settle(piece)
    become_data(piece.state, f.stream, "migration stream")
end

local function after_last(piece, kind)
    settle(piece)
    become_data(piece.state, f.data, "data after " .. type_names[kind])
    piece.state.over = true
end

-- With `loaded` it only remarks, and the return path goes on.
after_known[LAST_WORD] = function(piece, _, message)
    if message.loaded ~= true then after_last(piece, LAST_WORD) end
end

local function add_prefix(tree, range)
    tree:add(f.frame_length, range(0, 4))
    tree:add(f.frame_type, range(4, 2))
    local flags = tree:add(f.frame_flags, range(6, 2))
    flags:add(f.frame_critical, range(6, 2))
end

local function add_known(piece, branch, payload, kind)
    branch:add_packet_field(f.frame_payload, payload, ENC_UTF_8)
    local text = payload:raw()
    local good, message = pcall(read_object, text)
    if not good then
        branch:add_proto_expert_info(x.json, "Payload is not JSON as specified: " .. message)
        message = {}
    end
    piece:say(show[kind](branch, payload, message, piece.talk.session))
    add_json(payload, text, piece.pinfo, branch)
    return message
end

local function add_unknown(piece, branch, kind, critical)
    local state = piece.state
    state.unknown = state.unknown + 1
    if critical then
        branch:add_proto_expert_info(x.critical)
    elseif not is_grease[kind] then
        branch:add_proto_expert_info(x.unknown)
    end
    if state.unknown > UNKNOWN_MAX then branch:add_proto_expert_info(x.too_many) end
    if critical or state.unknown > UNKNOWN_MAX then break_off(piece) end
end

function parse.frames(piece, range)
    if range:len() < PREFIX then return nil, SOME end
    local state = piece.state
    local length, kind = range(0, 4):uint(), range(4, 2):uint()
    local critical = range(6, 2):bitfield(15, 1) == 1
    local known, limit = is_known(state, kind), limit_of(state, kind)
    local name = type_names[kind] or "unknown type"
    if not known then name = string.format("%s 0x%04x", name, kind) end

    if length > limit then
        local branch = piece:branch():add(range(0, PREFIX), "Frame: " .. name)
        add_prefix(branch, range(0, PREFIX))
        branch:add_proto_expert_info(x.too_long, string.format(
            "Frame of %.0f bytes, more than %d", length, limit))
        piece:say(string.format("%s too long (%.0f bytes)", name, length))
        break_off(piece)
        return PREFIX
    end
    local size = PREFIX + length
    if range:len() < size then return nil, size - range:len() end

    local title = name
    if not known then
        title = name .. (critical and ", unknown and critical" or ", unknown (skipped)")
    end
    local branch = piece:branch():add(range(0, size), "Frame: " .. title)
    add_prefix(branch, range(0, PREFIX))
    if state.phase == "return_path" and is_early(piece) then
        branch:add_proto_expert_info(x.early)
    end
    if not known then
        if length > 0 then branch:add(f.frame_skipped, range(PREFIX, length)) end
        piece:say(title)
        add_unknown(piece, branch, kind, critical)
        return size
    end
    local message = {}
    if length > 0 then
        message = add_known(piece, branch, range(PREFIX, length), kind)
    else
        branch:add_proto_expert_info(x.json, "No payload")
        piece:say(name)
    end
    if not expected(piece, kind) then
        branch:add_proto_expert_info(x.unexpected, name .. " is not what the " .. piece:role() ..
                                     " may send here")
        break_off(piece)
    elseif after_known[kind] then
        after_known[kind](piece, branch, message)
    else
        after_last(piece, kind)
    end
    return size
end

local function add_data(piece, range, field, text)
    local branch = piece:branch():add(field, range)
    text = string.format("%s, %d bytes", text, range:len())
    branch:set_text((text:gsub("^%l", string.upper)))
    piece:say(text)
    return branch
end

-- The size of the message at `at`, or nil and the number of bytes that it lacks;
-- nil alone if that is no message.
local function message_size(range, at)
    local left = range:len() - at
    if left < MESSAGE then return nil, SOME end
    local kind, size = range(at, 2):uint(), MESSAGE + range(at + 2, 2):uint()
    if kind == 0 or size > MESSAGE + MESSAGE_MAX then return nil end
    if size > left then return nil, size - left end
    return size
end

-- As many messages as are whole. One of type 0 is a frame.
function parse.return_path(piece, range)
    local at, lacking = 0, nil
    while at < range:len() do
        local size
        size, lacking = message_size(range, at)
        if not size then break end
        at = at + size
    end
    if at > 0 then
        local branch = add_data(piece, range(0, at), f.return_path, "return path")
        if is_early(piece) then branch:add_proto_expert_info(x.early) end
        return at
    end
    if lacking then return nil, lacking end
    if range(0, 2):uint() == 0 then return parse.frames(piece, range) end
    become_data(piece.state, f.return_path, "return path, not parsed")
    return parse.data(piece, range)
end

-- Who has said LOADED has read all of the stream: what follows is START.
local function is_behind_stream(piece)
    local talk = piece.talk
    return piece.state.field == f.stream and talk.name == "main" and piece:role() == "source"
        and piece:has_seen(talk.loaded)
end

parse.hand_over = parse.frames

function parse.data(piece, range)
    local state, text = piece.state, piece.state.title
    if is_behind_stream(piece) then
        -- So that earlier pieces of the stream, which are not kept, are that again.
        state.stream = copy(state)
        state.phase, state.field, state.unknown = "hand_over", nil, 0
        return parse.hand_over(piece, range)
    end
    if state.is_first and state.field == f.stream and first_four(range) == STREAM_MAGIC then
        text = text .. " begins (QEVM)"
    end
    local branch = add_data(piece, range, state.field, text)
    if state.over then
        branch:add_proto_expert_info(x.after)
    elseif state.field == f.data and piece.talk.name ~= "main" and is_early(piece) then
        branch:add_proto_expert_info(x.early)
    end
    state.is_first = false
    return range:len()
end

---- Joining it to TCP ------------------------------------------------------

local function add_generated(piece)
    local talk = piece.talk
    if talk.session then piece.item:add(f.session, talk.session):set_generated() end
    if talk.name then
        piece.item:add(f.channel, talk.name):set_generated()
        piece.item:add(f.channel_index, talk.index):set_generated()
    end
end

-- Other dissectors in between have added words of theirs. The fence keeps
-- ours, for there may be more in the same packet.
local function set_columns(piece)
    local state, columns = piece.state, piece.pinfo.cols
    local is_first = state.frame ~= piece.pinfo.number
    columns.protocol = "QMHS"
    columns.info:set((is_first and piece:role() .. ": " or "; ") .. table.concat(piece.said, "; "))
    columns.info:fence()
    state.frame = piece.pinfo.number
end

-- Takes what is complete, and asks TCP for more if the next thing is not.
local function parse_all(piece)
    local state, buffer, pinfo, at = piece.state, piece.buffer, piece.pinfo, 0
    while at < buffer:len() do
        local taken, lacking = parse[state.phase](piece, buffer(at))
        if taken then
            at = at + taken
        elseif pinfo.can_desegment > 0 then
            pinfo.desegment_offset, pinfo.desegment_len = at, lacking
            return
        else
            piece:branch():add_proto_expert_info(x.missing)
            break_off(piece)
        end
    end
end

local function dissect(buffer, pinfo, tree)
    if pinfo.in_error_pkt or buffer:len() == 0 then return 0 end
    local talk = talk_of(pinfo)
    talk.is_ours = true
    local piece = setmetatable({ buffer = buffer, pinfo = pinfo, tree = tree, talk = talk,
                                 state = state_of(talk, buffer, pinfo), said = {} }, Piece)
    parse_all(piece)
    if piece.item then
        add_generated(piece)
        set_columns(piece)
    end
    return buffer:len()
end

-- Only a whole magic will do, and only where a way begins: there may be one
-- in the memory of a guest. Whoever is asked about a talk that is ours already
-- has met another one, of the same addresses and ports.
local function heuristic(buffer, pinfo, tree)
    if pinfo.in_error_pkt or pinfo.visited then return false end
    local talk, speaker = talk_of(pinfo), speakers(pinfo)
    if talk.is_ours then talk = new_talk(talks_of(pinfo), pinfo) end
    local is_first = not talk.heard[speaker]
    talk.heard[speaker] = true
    if not is_first or buffer:len() < 4 or first_four(buffer) ~= MAGIC then return false end
    pinfo.conversation = qmhs
    -- Through qmhs.dissector it would be one layer more, without reassembly.
    dissect(buffer, pinfo, tree)
    return true
end

qmhs.dissector = dissect
qmhs:register_heuristic("tcp", heuristic)
DissectorTable.get("tcp.port"):add_for_decode_as(qmhs)
