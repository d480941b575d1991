/*
 * Migration handshake: the messages, from and to JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-output-visitor.h"
#include "qapi/util.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "migration/handshake/message.h"

#define CORE "\"versions\": [1], \"purpose\": \"migrate\", \"required\": []"

static strList *strlist(const char *names)
{
    g_auto(GStrv) split = g_strsplit(names, " ", 0);
    strList *list = NULL;
    strList **tail = &list;

    for (char **name = split; *name; name++) {
        QAPI_LIST_APPEND(tail, g_strdup(*name));
    }
    return list;
}

static void assert_strlist(const strList *list, const char *names)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (; list; list = list->next) {
        g_string_append_printf(text, "%s%s", text->len ? " " : "",
                               list->value);
    }
    g_assert_cmpstr(text->str, ==, names);
}

static void assert_fails(Error **err, const char *text)
{
    g_assert_nonnull(*err);
    if (!strstr(error_get_pretty(*err), text)) {
        g_error("expected '%s' in '%s'", text, error_get_pretty(*err));
    }
    error_free(*err);
    *err = NULL;
}

/* A text of @len bytes or a bit more, made of @unit */
static char *long_text(const char *unit, size_t len)
{
    GString *text = g_string_new(NULL);

    while (text->len < len) {
        g_string_append(text, unit);
    }
    return g_string_free(text, FALSE);
}

/* The payload of the one frame in @buf, which becomes empty */
static GString *payload(GByteArray *buf, HandshakeFrameType type)
{
    GString *json;

    g_assert_cmpuint(buf->len, >=, 8);
    g_assert_cmpuint(ldl_be_p(buf->data), ==, buf->len - 8);
    g_assert_cmpuint(lduw_be_p(buf->data + 4), ==, type);
    g_assert_cmpuint(lduw_be_p(buf->data + 6), ==, 1);
    json = g_string_new_len((char *)buf->data + 8, buf->len - 8);
    g_byte_array_set_size(buf, 0);
    return json;
}

static GString *hello_json(const MigrationHandshakeHello *hello)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    g_assert_true(handshake_put_hello(buf, hello, &error_abort));
    g_assert_cmpuint(buf->len - 8, <=, 512 * 1024);
    return payload(buf, HANDSHAKE_FRAME_HELLO);
}

static GString *verdict_json(const HandshakeVerdict *verdict)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    g_assert_true(handshake_put_verdict(buf, verdict, &error_abort));
    g_assert_cmpuint(buf->len - 8, <=, 128 * 1024);
    return payload(buf, verdict->accept ? HANDSHAKE_FRAME_ACCEPT
                                        : HANDSHAKE_FRAME_REJECT);
}

static GString *commit_json(const MigrationHandshakeCommit *commit)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    g_assert_true(handshake_put_commit(buf, commit, &error_abort));
    return payload(buf, HANDSHAKE_FRAME_COMMIT);
}

static GString *reason_json(HandshakeFrameType type, const char *message,
                            const HandshakeIssues *issues)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    const MigrationHandshakeReason reason = { .message = (char *)message };

    g_assert_true(handshake_put_reason(buf, type, &reason, issues,
                                       &error_abort));
    g_assert_cmpuint(buf->len - 8, <=, type == HANDSHAKE_FRAME_LAST_WORD
                                       ? 16 * 1024 : 128 * 1024);
    return payload(buf, type);
}

static QObject *to_qobject(const MigrationHandshakeHello *hello)
{
    MigrationHandshakeHello *obj = (MigrationHandshakeHello *)hello;
    QObject *result;
    Visitor *v = qobject_output_visitor_new(&result);

    visit_type_MigrationHandshakeHello(v, NULL, &obj, &error_abort);
    visit_complete(v, &result);
    visit_free(v);
    return result;
}

static MigrationHandshakeHello *hello_new(void)
{
    static const char json[] = "{"
        "\"versions\": [1, 4294967295], \"purpose\": \"migrate\","
        "\"required\": [\"a\"], \"features\": [\"b\", \"late-error\"],"
        "\"optional-capabilities\": [\"multifd\"],"
        "\"warnings-as-errors\": true,"
        "\"ignore\": [\"cpu\", \"disk:0000:00:03.0/virtio-blk\"],"
        "\"profile\": {"
        " \"qemu-version\": \"10.0.0\", \"package\": \"1:10.0.0+ds-1\","
        " \"arch\": \"x86_64\", \"machine\": \"pc-q35-10.0\","
        " \"page-size\": 4096, \"host-page-size\": 65536,"
        " \"uuid\": \"00112233-4455-6677-8899-aabbccddeeff\","
        " \"name\": \"\\\"\\\\\\n\\u00e4 \\ud83d\\ude00\","
        " \"capabilities\": [\"events\"],"
        " \"required-capabilities\": [\"dirty-bitmaps\"],"
        " \"parameters\": [{\"capability\": \"multifd\","
        "  \"name\": \"multifd-channels\", \"value\": \"4\"},"
        "  {\"capability\": \"x\", \"name\": \"y\", \"value\": \"z\"}],"
        " \"stream\": {\"send-configuration\": true},"
        " \"sections\": [{\"name\": \"ram\", \"version\": 4},"
        "  {\"name\": \"cpu\", \"version\": 4294967295,"
        "   \"instances\": [0, 1, 4294967295], \"conditional\": true}],"
        " \"ram-blocks\": ["
        "  {\"name\": \"pc.ram\", \"size\": 18446744073709551615,"
        "   \"max-size\": 1, \"page-size\": 4096, \"resizeable\": true,"
        "   \"conditional\": false, \"shared-file\": true, \"address\": 0}],"
        " \"bitmaps\": [{\"node\": \"disk\", \"name\": \"b0\"}],"
        " \"unmigratable\": [\"nvme\"],"
        " \"blockers\": [\"the disk is in use\"]}}";
    g_autoptr(GString) text = g_string_new(json);

    return handshake_get_hello(text, NULL, &error_abort);
}

static void add_issues(HandshakeIssues *issues, HandshakeSeverity severity,
                       int count, const char *text)
{
    for (int i = 0; i < count; i++) {
        handshake_issue_add(issues, "code", severity, text, text, text, "%d %s",
                            i, text);
    }
}

static HandshakeVerdict *verdict_new(bool accept)
{
    HandshakeVerdict *verdict = handshake_verdict_new(accept);
    MigrationHandshakeVerdict *message = verdict->message;
    MigrationHandshakeParameter *parameter =
        g_new0(MigrationHandshakeParameter, 1);

    message->has_version = true;
    message->version = 1;
    message->message = g_strdup("why");
    message->has_features = true;
    message->features = handshake_features();
    message->has_not_understood = true;
    message->not_understood = strlist("x profile.y");
    message->peer = g_new0(MigrationHandshakePeer, 1);
    message->peer->machine = g_strdup("virt");
    message->has_capabilities = true;
    message->capabilities = strlist("return-path multifd");
    message->has_declined = true;
    handshake_declined_add(&message->declined, "xbzrle", "not possible");
    handshake_declined_add(&message->declined, "rdma", "nor this");
    parameter->capability = g_strdup("multifd");
    parameter->name = g_strdup("multifd-channels");
    parameter->value = g_strdup("4");
    message->has_parameters = true;
    QAPI_LIST_PREPEND(message->parameters, parameter);
    handshake_issue_add(&verdict->issues, "cpu", HANDSHAKE_WARNING, "host", "a",
                        "b", "the CPU %s", "differs");
    return verdict;
}

/* How many reserved names an object's members have */
static unsigned count_grease(const QDict *dict)
{
    unsigned count = 0;

    for (const QDictEntry *e = qdict_first(dict); e; e = qdict_next(dict, e)) {
        const char *name = qdict_entry_key(e);

        count += strlen(name) == 15 && g_str_has_prefix(name, "grease-") &&
                 strspn(name + 7, "0123456789abcdef") == 8;
    }
    return count;
}

static void assert_greased(const QDict *dict);

static void assert_list_greased(const QList *list, const char *name)
{
    const QListEntry *entry;
    unsigned names = 0, numbers = 0;
    bool first = true;

    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));
        QString *str = qobject_to(QString, qlist_entry_obj(entry));
        QNum *num = qobject_to(QNum, qlist_entry_obj(entry));
        uint64_t value;

        if (item) {
            g_assert_cmpuint(count_grease(item), ==, first);
        }
        names += str && g_str_has_prefix(qstring_get_str(str), "grease-");
        numbers += num && qnum_get_try_uint(num, &value) &&
                   value <= UINT16_MAX && (value & 0x0f0f) == 0x0a0a &&
                   value >> 8 == (value & 0xff);
        first = false;
    }
    g_assert_cmpuint(names, ==, g_str_equal(name, "features"));
    g_assert_cmpuint(numbers, ==, g_str_equal(name, "versions"));
}

/* Wherever a later version may add something, and nowhere else */
static void assert_greased(const QDict *dict)
{
    g_assert_cmpuint(count_grease(dict), ==, 1);
    for (const QDictEntry *e = qdict_first(dict); e; e = qdict_next(dict, e)) {
        QDict *member = qobject_to(QDict, qdict_entry_value(e));
        QList *list = qobject_to(QList, qdict_entry_value(e));

        if (member) {
            assert_greased(member);
        } else if (list) {
            assert_list_greased(list, qdict_entry_key(e));
        }
    }
}

/* Consumes @json */
static void assert_json_greased(GString *json)
{
    g_autoptr(QDict) dict =
        qobject_to(QDict, qobject_from_json(json->str, &error_abort));

    assert_greased(dict);
    g_string_free(json, TRUE);
}

static void test_grease(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(HandshakeVerdict) accept = verdict_new(true);
    g_autoptr(HandshakeVerdict) reject = verdict_new(false);
    MigrationHandshakeCommit commit = {
        .digest = (char *)"00",
        .has_without = true,
        .without = accept->message->declined,
    };
    g_autoptr(GString) one = hello_json(hello);
    g_autoptr(GString) other = hello_json(hello);

    assert_json_greased(hello_json(hello));
    assert_json_greased(verdict_json(accept));
    assert_json_greased(verdict_json(reject));
    assert_json_greased(commit_json(&commit));
    assert_json_greased(reason_json(HANDSHAKE_FRAME_ABORT, "x",
                                    &accept->issues));
    assert_json_greased(reason_json(HANDSHAKE_FRAME_LAST_WORD, "x",
                                    &accept->issues));
    /* It is random */
    g_assert_cmpstr(one->str, !=, other->str);
}

static void test_grease_frame(void)
{
    unsigned seen = 0;

    for (int i = 0; i < 1000; i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        uint8_t byte;

        handshake_put_grease(buf);
        g_assert_cmpuint(buf->len, ==, 10);
        byte = buf->data[4];
        g_assert_cmpuint(byte & 0xf, ==, 0xa);
        g_assert_cmpuint(buf->data[5], ==, byte);
        g_assert_cmpuint(lduw_be_p(buf->data + 6), ==, 0);
        seen |= 1 << (byte >> 4);
    }
    g_assert_cmphex(seen, ==, 0xffff);
}

static void test_hello(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(GString) json = hello_json(hello);
    g_autoptr(strList) not_understood = NULL;
    g_autoptr(MigrationHandshakeHello) got =
        handshake_get_hello(json, &not_understood, &error_abort);
    QObject *expected = to_qobject(hello);
    QObject *result;

    g_assert_cmpuint(QAPI_LIST_LENGTH(got->versions), ==, 3);
    g_clear_pointer(&got->versions->next->next, qapi_free_uint32List);
    g_assert_cmpuint(QAPI_LIST_LENGTH(got->features), ==, 3);
    g_clear_pointer(&got->features->next->next, qapi_free_strList);
    result = to_qobject(got);
    g_assert_true(qobject_is_equal(result, expected));
    qobject_unref(result);
    qobject_unref(expected);

    /* Grease is nothing special: it is one more thing that is not understood */
    g_assert_cmpuint(QAPI_LIST_LENGTH(not_understood), ==, 7);
    for (strList *l = not_understood; l; l = l->next) {
        g_assert_nonnull(strstr(l->value, "grease-"));
    }
}

/* Reads a HELLO that is @json; NULL with @errp set if it is none */
static MigrationHandshakeHello *hello_parse(const char *json, Error **errp)
{
    g_autoptr(GString) text = g_string_new(json);

    return handshake_get_hello(text, NULL, errp);
}

static void assert_hello_refused(const char *json, const char *expected)
{
    Error *err = NULL;

    g_assert_null(hello_parse(json, &err));
    assert_fails(&err, expected);
}

static void test_hello_minimal(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_parse("{" CORE "}",
                                                           &error_abort);

    g_assert_nonnull(hello->profile);
    g_assert_null(hello->features);
    g_assert_false(hello->warnings_as_errors);
    assert_hello_refused("{\"purpose\": \"\", \"required\": []}", "versions");
    assert_hello_refused("{\"versions\": [], \"required\": []}", "purpose");
    assert_hello_refused("{\"versions\": [], \"purpose\": \"\"}", "required");
}

static void test_hello_strict(void)
{
    static const char *const members[][2] = {
        { "features", "\"x\"" }, { "features", "[1]" }, { "features", "null" },
        { "optional-capabilities", "[{}]" }, { "warnings-as-errors", "1" },
        { "ignore", "\"cpu\"" }, { "ignore", "[1]" }, { "ignore", "{}" },
        { "profile", "[]" }, { "profile", "{\"machine\": 1}" },
        { "profile", "{\"page-size\": -1}" },
        { "profile", "{\"page-size\": 18446744073709551616}" },
        { "profile", "{\"required-capabilities\": [1]}" },
        { "profile", "{\"parameters\": {}}" },
        { "profile", "{\"parameters\": [{\"name\": \"x\"}]}" },
        { "profile", "{\"stream\": {\"suppress-vmdesc\": 0}}" },
        { "profile", "{\"sections\": [{\"name\": \"x\"}]}" },
        { "profile", "{\"sections\": [{\"version\": 1}]}" },
        { "profile", "{\"sections\": [{\"name\": \"\", \"version\": -1}]}" },
        { "profile", "{\"sections\": [{\"name\": \"\", \"version\": 1,"
                     " \"instances\": [4294967296]}]}" },
        { "profile", "{\"ram-blocks\": [{\"name\": \"x\"}]}" },
        { "profile", "{\"bitmaps\": [\"x\"]}" },
        { "profile", "{\"bitmaps\": [{\"name\": \"x\"}]}" },
        { "profile", "{\"bitmaps\": [{\"node\": \"x\", \"name\": 1}]}" },
        { "profile", "{\"blockers\": [null]}" },
    };

    for (int i = 0; i < ARRAY_SIZE(members); i++) {
        g_autofree char *json = g_strdup_printf("{" CORE ", \"%s\": %s}",
                                                members[i][0], members[i][1]);

        assert_hello_refused(json, "arameter");
    }
    assert_hello_refused("{\"versions\": [4294967296], \"purpose\": \"\","
                         " \"required\": []}", "uint32");
}

static void test_hello_unknown(void)
{
    g_autoptr(GString) json =
        g_string_new("{" CORE ", \"a\": {\"b\": [null]}, \"profile\": {"
                     " \"c\\n\": 1, \"stream\": {\"d\": [{}]}, \"sections\":"
                     " [{\"name\": \"\", \"version\": 1, \"e\": -1}]}}");
    static const char *const expected[] = {
        "a", "profile.c ", "profile.stream.d", "profile.sections[0].e"
    };
    g_autoptr(strList) names = NULL;
    g_autoptr(MigrationHandshakeHello) hello =
        handshake_get_hello(json, &names, &error_abort);

    g_assert_nonnull(hello->profile->sections);
    g_assert_cmpuint(QAPI_LIST_LENGTH(names), ==, ARRAY_SIZE(expected));
    for (int i = 0; i < ARRAY_SIZE(expected); i++) {
        g_assert_true(handshake_has_name(names, expected[i]));
    }
}

/* The answer to the worst of a source's inventions has room for all issues */
static void test_hello_unknown_many(void)
{
    static const char *const units[] = { "x", "\\u0001", "\xf0\x9f\x98\x80" };

    for (int i = 0; i < ARRAY_SIZE(units); i++) {
        g_autofree char *text = long_text(units[i], 240);
        g_autoptr(GString) json = g_string_new("{" CORE);
        g_autoptr(HandshakeVerdict) verdict = verdict_new(false);
        g_autoptr(MigrationHandshakeHello) hello = NULL;
        g_autoptr(GString) answer = NULL;

        for (int j = 0; j < 200; j++) {
            g_string_append_printf(json, ", \"%03d%s\": 0", j, text);
        }
        g_string_append(json, "}");
        qapi_free_strList(verdict->message->not_understood);
        hello = handshake_get_hello(json, &verdict->message->not_understood,
                                    &error_abort);
        g_assert_cmpuint(QAPI_LIST_LENGTH(verdict->message->not_understood),
                         ==, 64);
        add_issues(&verdict->issues, HANDSHAKE_ERROR, 100, "x");
        answer = verdict_json(verdict);
        g_assert_null(strstr(answer->str, "issues-omitted"));
    }
}

/* @json is in the place of an unknown member's value */
static GString *around(const char *json)
{
    GString *text = g_string_new(NULL);

    g_string_printf(text, "{" CORE ", \"x\": %s}", json);
    return text;
}

static void test_json_good(void)
{
    static const char *const good[] = {
        "-0", "18446744073709551615", "-9223372036854775808", "true", "null",
        "[]", " \t\r\n[ ] ", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\x7f\"",
        "\"\\ud83d\\ude00\"", "\"\xf0\x9f\x98\x80\"", "\"{[}\\\"{\"",
    };

    for (int i = 0; i < ARRAY_SIZE(good); i++) {
        g_autoptr(GString) json = around(good[i]);
        g_autoptr(MigrationHandshakeHello) hello =
            handshake_get_hello(json, NULL, &error_abort);

        g_assert_nonnull(hello);
    }
}

static void test_json_bad(void)
{
    static const char *const bad[] = {
        "", "1.0", "1e1", "1E1", "01", "-", "+1", ".1", "0x1", "True", "nil",
        "NaN", "'x'", "[1,]", "[1 2]", "{\"a\": 1,}", "{1: 1}", "{\"a\"}", "]",
        "[}", "{", "[", "\"", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\t\"",
        "\"\x01\"", "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"\\ud800\"",
        "\"\\udc00\"", "\"\\uffff\"", "\"\xef\xbf\xbe\"", "1} {", "1}}", "%d",
        "{\"a\": 1, \"a\": 2}", "{\"a\": 1, \"\\u0061\": 2}",
        "/* */ 1", "\xef\xbb\xbf" "1",
    };
    /*
     * These must be found by the scan: after an error of QEMU's lexer, what it
     * takes for a string may be something else, and brackets can hide in it
     */
    static const char *const lexer[] = {
        "\"\x01[{\"", "\"\t[{\"", "\"\xfe\"", "\"\xff\"", "'[{'", "01",
        "-", "1.", "1.x", "1e", "+", "A", "%", "\\\"[{\"", "1}}", "\x7f",
        "\xc3",
    };
    g_autoptr(GString) nul = around("1");
    Error *err = NULL;

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autoptr(GString) json = around(bad[i]);

        assert_hello_refused(json->str, "JSON");
    }
    for (int i = 0; i < ARRAY_SIZE(lexer); i++) {
        g_autoptr(GString) json = around(lexer[i]);

        assert_hello_refused(json->str, "JSON error at byte");
    }
    assert_hello_refused("", "JSON");
    assert_hello_refused("[]", "JSON");
    assert_hello_refused("{" CORE "}{}", "JSON");
    g_string_append_len(nul, "\0{}", 3);
    g_assert_null(handshake_get_hello(nul, NULL, &err));
    assert_fails(&err, "JSON");
}

typedef struct Bound {
    const char *open, *item, *close;    /* @item as often as it takes */
    int most;
    const char *error;
} Bound;

static void test_json_bounds(void)
{
    static const Bound bounds[] = {
        { "", "[", "", 15, "nested too deeply" },
        { "[", ",{}", "]", 8191, "too many objects" },
        { "{", ",\"%d\":0", "}", 256, "too many members" },
        { "[{\"", "x", "\": 0}, {\"x\": 1}]", 255, "member name too long" },
    };

    for (int i = 0; i < ARRAY_SIZE(bounds); i++) {
        const Bound *b = &bounds[i];

        for (int count = b->most; count <= b->most + 1; count++) {
            g_autoptr(GString) value = g_string_new(b->open);
            g_autoptr(GString) json = NULL;
            g_autoptr(MigrationHandshakeHello) hello = NULL;
            Error *err = NULL;

            for (int j = 0; j < count; j++) {
                g_autofree char *text = strstr(b->item, "%d")
                    ? g_strdup_printf(",\"%d\":0", j) : g_strdup(b->item);

                g_string_append(value, text + (j == 0 && *text == ','));
            }
            g_string_append(value, b->close);
            for (int j = 0; i == 0 && j < count; j++) {
                g_string_append(value, "]");
            }
            json = around(value->str);
            hello = handshake_get_hello(json, NULL, &err);
            g_assert_true(!!hello == (count == b->most));
            if (!hello) {
                assert_fails(&err, b->error);
            }
        }
    }
}

/* However it is cut, nothing but an error comes of it */
static void test_json_cut(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(GString) json = hello_json(hello);

    while (json->len) {
        HandshakeIssues issues = { 0 };
        g_autoptr(MigrationHandshakeReason) reason = NULL;
        Error *err = NULL;

        g_string_truncate(json, json->len - 1);
        g_assert_null(handshake_get_hello(json, NULL, &err));
        assert_fails(&err, "JSON");
        reason = handshake_get_reason(json, &issues);
        g_assert_cmpstr(reason->message, ==, "no reason was given");
    }
}

static void add_section(MigrationHandshakeHello *hello, const char *name,
                        unsigned instances)
{
    MigrationProfileSection *section = g_new0(MigrationProfileSection, 1);

    section->name = g_strdup(name);
    section->has_instances = instances;
    while (instances) {
        QAPI_LIST_PREPEND(section->instances, --instances);
    }
    QAPI_LIST_PREPEND(hello->profile->sections, section);
    hello->profile->has_sections = true;
}

static void add_blocks(MigrationHandshakeHello *hello, const char *name,
                       unsigned count)
{
    while (count--) {
        MigrationProfileRAMBlock *block = g_new0(MigrationProfileRAMBlock, 1);

        block->name = g_strdup(name);
        QAPI_LIST_PREPEND(hello->profile->ram_blocks, block);
    }
    hello->profile->has_ram_blocks = true;
}

/* What a peer may send, and what a machine that has more leaves out */
static void test_parts(void)
{
    static const struct {
        unsigned sections, instances, name_len, blocks;
        const char *refused;
    } cases[] = {
        { 1, 16384, 1, 2048, NULL },
        { 1, 16385, 1, 1, "more than 16384 sections" },
        { 4, 4097, 1, 1, "more than 16384 sections" },
        { 6000, 0, 1, 2049, "more than 2048 RAM blocks" },
        { 2, 0, 255, 1, NULL },
        { 1, 0, 256, 0, "name of more than 255 bytes" },
        { 0, 0, 256, 1, "name of more than 255 bytes" },
        { 6100, 0, 1, 2048, NULL },
        /* All in all too many objects, or too long */
        { 8192, 0, 1, 0, "too many objects" },
        { 3000, 0, 255, 0, "more than 524288 bytes" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(MigrationHandshakeHello) hello = hello_new();
        g_autofree char *name = g_strnfill(cases[i].name_len, 'x');
        g_autoptr(MigrationHandshakeHello) got = NULL;
        g_autoptr(GString) json = NULL;
        bool fits = !cases[i].refused;
        QObject *whole;
        Error *err = NULL;

        g_clear_pointer(&hello->profile->sections,
                        qapi_free_MigrationProfileSectionList);
        g_clear_pointer(&hello->profile->ram_blocks,
                        qapi_free_MigrationProfileRAMBlockList);
        for (int j = 0; j < cases[i].sections; j++) {
            add_section(hello, name, cases[i].instances);
        }
        add_blocks(hello, name, cases[i].blocks);

        json = hello_json(hello);
        got = handshake_get_hello(json, NULL, &error_abort);
        g_assert_true(!!got->profile->sections == (fits && cases[i].sections));
        g_assert_true(!!got->profile->ram_blocks == (fits && cases[i].blocks));
        g_assert_true(fits || (!got->profile->has_sections &&
                               !got->profile->has_ram_blocks));
        g_assert_cmpstr(got->profile->machine, ==, "pc-q35-10.0");
        g_clear_pointer(&got, qapi_free_MigrationHandshakeHello);

        whole = to_qobject(hello);
        got = handshake_get_profile(whole, &err);
        qobject_unref(whole);
        g_assert_true(!!got == !cases[i].refused);
        if (!got) {
            assert_fails(&err, cases[i].refused);
        }
    }
}

/* @count items, as a peer may send them */
static char *json_list(unsigned count, const char *item)
{
    g_autoptr(GString) list = g_string_new("[");

    for (unsigned i = 0; i < count; i++) {
        g_string_append_printf(list, "%s%s", i ? ", " : "", item);
    }
    return g_strdup(g_string_append(list, "]")->str);
}

/* What has a bound besides */
static void test_lists(void)
{
    static const struct {
        const char *before, *item, *after;
        unsigned max;
        const char *refused;
    } cases[] = {
        { "\"ignore\": ", "\"of-a-later-version\"", "", 64,
          "more than 64 issues to be ignored" },
        { "\"profile\": {\"bitmaps\": ", "{\"node\": \"x\"}", "}", 1024,
          "more than 1024 dirty bitmaps" },
    };
    g_autofree char *name = g_strnfill(256, 'x');
    g_autofree char *node = g_strdup_printf(
        "{" CORE ", \"profile\": {\"bitmaps\": [{\"node\": \"%s\"}]}}", name);
    g_autofree char *bitmap = g_strdup_printf(
        "{" CORE ", \"profile\": {\"bitmaps\": [{\"node\": \"x\","
        " \"name\": \"%s\"}]}}", name);

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        for (unsigned more = 0; more < 2; more++) {
            g_autofree char *list = json_list(cases[i].max + more,
                                              cases[i].item);
            g_autofree char *json =
                g_strdup_printf("{" CORE ", %s%s%s}", cases[i].before, list,
                                cases[i].after);

            if (more) {
                assert_hello_refused(json, cases[i].refused);
            } else {
                qapi_free_MigrationHandshakeHello(hello_parse(json,
                                                              &error_abort));
            }
        }
    }
    assert_hello_refused(node, "name of more than 255 bytes");
    assert_hello_refused(bitmap, "name of more than 255 bytes");
}

#define PROMISES(json) \
    "{" CORE ", \"profile\": { \"sections\": [ { \"name\": \"x\", " \
    "\"version\": 1, \"promises\": { " json " } } ] } }"

static void test_promises(void)
{
    static const char *const good[] = {
        "", "\"pci-config\": \"\"", "\"pci-config\": \"0:01,fff:02\"",
        "\"virtio-features\": \"0\"", "\"a\": [ {}, [], 1, null ]",
        "\"cpu-features\": []", "\"pci-configs\": \"what\"",
        "\"counts\": [ { \"name\": \"\", \"value\": 1, \"x\": 2 } ]",
        "\"values\": [ { \"name\": \"a\", \"value\": 18446744073709551615 } ]",
        "\"cpu-registers\": \"0\"", "\"cpu-registers\": \"1=0,1,ff=a\"",
    };
    static const char *const bad[] = {
        "\"pci-config\": \"0:1\"", "\"pci-config\": \"1000:01\"",
        "\"pci-status\": \"zz\"", "\"virtio-features\": \"\"",
        "\"virtio-features\": \"0x1\"", "\"cpu-registers\": \"\"",
        "\"cpu-registers\": \"1,0\"",
    };
    static const char *const wrong[] = {
        "\"pci-config\": 1", "\"virtio-features\": 1",
        "\"virtio-queues\": -1", "\"virtio-queues\": true",
        "\"virtio-queues\": \"1\"", "\"counts\": {}", "\"counts\": [ 1 ]",
        "\"counts\": [ { \"name\": \"x\" } ]",
        "\"counts\": [ { \"name\": 1, \"value\": 1 } ]",
        "\"cpu-features\": [ 1 ]", "\"cpu-features\": \"avx\"",
        "\"cpu-registers\": [ \"1\" ]", "\"cpu-mode\": \"power9\"",
        "\"machine-capabilities\": [ { \"name\": \"htm\", \"value\": true } ]",
        "\"machine-defaults\": [ \"htm\" ]",
        "\"cpu\": [ { \"name\": \"family\", \"value\": 6 } ]",
        "\"vnet-hdr\": 1", "\"disk-sizes\": null",
    };

    for (int i = 0; i < ARRAY_SIZE(good); i++) {
        g_autofree char *text = g_strdup_printf(PROMISES("%s"), good[i]);
        g_autoptr(GString) json = g_string_new(text);
        g_autoptr(MigrationHandshakeHello) hello =
            handshake_get_hello(json, NULL, &error_abort);

        g_assert_nonnull(hello->profile->sections->value->promises);
    }
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *text = g_strdup_printf(PROMISES("%s"), bad[i]);

        assert_hello_refused(text, "malformed promise");
    }
    for (int i = 0; i < ARRAY_SIZE(wrong); i++) {
        g_autofree char *text = g_strdup_printf(PROMISES("%s"), wrong[i]);

        assert_hello_refused(text, "arameter");
    }
}

/* @n of @item, with commas between them */
static char *repeated(const char *item, int n)
{
    GString *text = g_string_new(NULL);

    for (int i = 0; i < n; i++) {
        g_string_append_printf(text, "%s", i ? "," : "");
        g_string_append_printf(text, item, i);
    }
    return g_string_free(text, FALSE);
}

static void test_promises_many(void)
{
    static const struct {
        const char *format;
        const char *item;
        int max;
        const char *error;
    } cases[] = {
        { "%s", "\"n%d\": 1", 64, "more than 64 promises" },
        { "\"cpu-features\": [ %s ]", "\"f%d\"", 4096, "too long" },
        { "\"unknown\": [ %s ]", "%d", 4096, "too long" },
    };
    g_autofree char *text32k = g_strnfill(32 * 1024, 'a');
    g_autofree char *name255 = g_strnfill(255, 'n');

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        for (int more = 0; more < 2; more++) {
            g_autofree char *items = repeated(cases[i].item,
                                              cases[i].max + more);
            g_autofree char *promises = g_strdup_printf(cases[i].format,
                                                        items);
            g_autofree char *text = g_strdup_printf(PROMISES("%s"), promises);
            g_autoptr(GString) json = g_string_new(text);

            if (more) {
                assert_hello_refused(text, cases[i].error);
            } else {
                qapi_free_MigrationHandshakeHello(
                    handshake_get_hello(json, NULL, &error_abort));
            }
        }
    }
    for (int more = 0; more < 2; more++) {
        static const char *const formats[] = {
            "\"device-type\": \"%s%s\"", "\"disk-writable\": [ \"%s%s\" ]",
            "\"counts\": [ { \"name\": \"%s%s\", \"value\": 1 } ]",
        };

        for (int i = 0; i < ARRAY_SIZE(formats); i++) {
            g_autofree char *promises =
                g_strdup_printf(formats[i], i ? name255 : text32k,
                                more ? "b" : "");
            g_autofree char *text = g_strdup_printf(PROMISES("%s"), promises);
            g_autoptr(GString) json = g_string_new(text);

            if (more) {
                assert_hello_refused(text, "too long");
            } else {
                qapi_free_MigrationHandshakeHello(
                    handshake_get_hello(json, NULL, &error_abort));
            }
        }
    }
}

/* Of a machine with a great many devices, the sections are still told */
static void test_promises_left_out(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(MigrationHandshakeHello) got = NULL;
    g_autoptr(GString) json = NULL;

    g_clear_pointer(&hello->profile->sections,
                    qapi_free_MigrationProfileSectionList);
    for (int i = 0; i < 5000; i++) {
        add_section(hello, "x", 0);
        hello->profile->sections->value->promises =
            g_new0(MigrationPromises, 1);
    }
    json = hello_json(hello);
    got = handshake_get_hello(json, NULL, &error_abort);
    g_assert_cmpuint(QAPI_LIST_LENGTH(got->profile->sections), ==, 5000);
    g_assert_null(got->profile->sections->value->promises);
    g_assert_nonnull(hello->profile->sections->value->promises);
}

static void test_profile(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(MigrationHandshakeHello) got = NULL;
    MigrationHandshakeCombination *combination =
        g_new0(MigrationHandshakeCombination, 1);
    g_autoptr(QDict) expected = NULL;
    g_autoptr(QDict) result = NULL;
    Error *err = NULL;

    hello->has_declined = true;
    handshake_declined_add(&hello->declined, "multifd", "no");
    combination->capability = g_strdup("a");
    combination->with = g_strdup("b");
    hello->has_combinations = true;
    QAPI_LIST_PREPEND(hello->combinations, combination);
    expected = qobject_to(QDict, to_qobject(hello));
    got = handshake_get_profile(QOBJECT(expected), &error_abort);
    result = qobject_to(QDict, to_qobject(got));
    g_assert_true(qobject_is_equal(QOBJECT(result), QOBJECT(expected)));

    /* What is shown of it may be shown */
    g_free(hello->declined->value->reason);
    hello->declined->value->reason = g_strdup("no\n");
    combination->reason = g_strdup("nor\tthis");
    qobject_unref(expected);
    expected = qobject_to(QDict, to_qobject(hello));
    qdict_put_str(expected, "later", "ignored");
    qapi_free_MigrationHandshakeHello(got);
    got = handshake_get_profile(QOBJECT(expected), &error_abort);
    g_assert_cmpstr(got->declined->value->reason, ==, "no ");
    g_assert_cmpstr(got->combinations->value->reason, ==, "nor this");
    qdict_put_int(expected, "purpose", 1);
    g_assert_null(handshake_get_profile(QOBJECT(expected), &err));
    assert_fails(&err, "purpose");
}

static void assert_issue(const MigrationHandshakeIssue *issue,
                         const char *code, const char *severity,
                         const char *subject, const char *source,
                         const char *destination, const char *message)
{
    g_assert_cmpstr(issue->code, ==, code);
    g_assert_cmpstr(issue->severity, ==, severity);
    g_assert_cmpstr(issue->subject, ==, subject);
    g_assert_cmpstr(issue->source, ==, source);
    g_assert_cmpstr(issue->destination, ==, destination);
    g_assert_cmpstr(issue->message, ==, message);
}

static HandshakeVerdict *verdict_parse(const char *json, bool accept,
                                       Error **errp)
{
    g_autoptr(GString) text = g_string_new(json);

    return handshake_get_verdict(text, accept, errp);
}

static void test_verdict(void)
{
    for (int accept = 0; accept < 2; accept++) {
        g_autoptr(HandshakeVerdict) verdict = verdict_new(accept);
        g_autoptr(GString) json = verdict_json(verdict);
        g_autoptr(HandshakeVerdict) got =
            handshake_get_verdict(json, accept, &error_abort);
        MigrationHandshakeVerdict *message = got->message;

        g_assert_true(got->accept == accept);
        g_assert_cmpuint(message->version, ==, 1);
        g_assert_cmpstr(message->message, ==, "why");
        assert_strlist(message->features,
                       "named-channels late-error one-owner resume-header");
        assert_strlist(message->not_understood, "x profile.y");
        g_assert_cmpstr(message->peer->machine, ==, "virt");
        g_assert_null(message->peer->arch);
        /* A refusal puts nothing into effect */
        g_assert_true(message->has_capabilities == accept);
        g_assert_true(message->has_declined == accept);
        g_assert_true(message->has_parameters == accept);
        if (accept) {
            assert_strlist(message->capabilities, "return-path multifd");
            g_assert_cmpstr(message->declined->value->capability, ==, "xbzrle");
            g_assert_cmpstr(message->declined->next->value->reason, ==,
                            "nor this");
            g_assert_cmpstr(message->parameters->value->value, ==, "4");
        }
        g_assert_false(message->has_issues);
        g_assert_null(message->issues);
        g_assert_cmpuint(got->issues.listed, ==, 1);
        g_assert_cmpuint(got->issues.warnings, ==, 1);
        assert_issue(got->issues.list->value, "cpu", "warning", "host", "a",
                     "b", "the CPU differs");
    }
}

static void test_accept_strict(void)
{
    static const char *const bad[] = {
        "", "[]", "{\"version\": \"1\"}", "{\"capabilities\": [1]}",
        "{\"parameters\": [{}]}", "{\"issues\": [{}]}", "{\"peer\": 1}",
        "{\"declined\": [{\"capability\": \"x\"}]}", "{\"message\": null}",
        "{\"issues-omitted\": -1}",
    };
    g_autoptr(HandshakeVerdict) empty = verdict_parse("{}", true, &error_abort);
    g_autoptr(HandshakeVerdict) later =
        verdict_parse("{\"features\": [\"x\", \"late-error\"]}", true,
                      &error_abort);

    g_assert_false(empty->message->has_version);
    g_assert_null(empty->message->capabilities);
    g_assert_null(empty->message->features);
    assert_strlist(later->message->features, "late-error");
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        Error *err = NULL;

        g_assert_null(verdict_parse(bad[i], true, &err));
        assert_fails(&err, "");
    }
}

#define ISSUE "{\"code\": \"c\", \"severity\": \"error\", \"message\": \"m\"}"

/* A REJECT, an ABORT and a LAST WORD count by their type, whatever is in it */
static void test_lenient(void)
{
    static const struct {
        const char *json;
        const char *message;
        unsigned listed, omitted;
    } cases[] = {
        { "", NULL, 0, 0 },
        { "not JSON", NULL, 0, 0 },
        { "[\"message\"]", NULL, 0, 0 },
        { "{\"message\": \"why\", \"message\": \"why\"}", NULL, 0, 0 },
        { "{}", NULL, 0, 0 },
        { "{\"message\": \"why\"}", "why", 0, 0 },
        { "{\"message\": [\"why\"], \"issues\": [" ISSUE "]}", NULL, 1, 0 },
        { "{\"message\": \"why\", \"version\": -1, \"peer\": [], \"guest\": 1,"
          " \"issues\": [" ISSUE "], \"issues-omitted\": 5}", "why", 1, 5 },
        { "{\"message\": \"why\", \"issues\": 1}", "why", 0, 0 },
        { "{\"message\": \"why\", \"issues\": [" ISSUE ", 1, {}, null,"
          " {\"code\": \"c\", \"message\": \"m\"}, [], " ISSUE "],"
          " \"issues-omitted\": 2}", "why", 2, 7 },
        { "{\"issues\": [" ISSUE "], \"issues-omitted\": \"2\"}", NULL, 1, 0 },
        { "{\"issues-omitted\": -1}", NULL, 0, 0 },
        { "{\"issues-omitted\": 18446744073709551615}", NULL, 0, INT32_MAX },
        { "{\"issues-omitted\": 18446744073709551616}", NULL, 0, 0 },
        { "{\"features\": [1], \"message\": \"why\"}", "why", 0, 0 },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(GString) json = g_string_new(cases[i].json);
        g_autoptr(HandshakeVerdict) verdict =
            handshake_get_verdict(json, false, &error_abort);
        HandshakeIssues issues = { 0 };
        g_autoptr(MigrationHandshakeReason) reason =
            handshake_get_reason(json, &issues);

        g_assert_false(verdict->accept);
        g_assert_cmpstr(verdict->message->message, ==, cases[i].message);
        g_assert_cmpuint(verdict->issues.listed, ==, cases[i].listed);
        g_assert_cmpuint(verdict->issues.errors, ==, cases[i].listed);
        g_assert_cmpuint(verdict->issues.omitted, ==, cases[i].omitted);
        g_assert_cmpstr(reason->message, ==, verdict->message->message
                                             ?: "no reason was given");
        g_assert_cmpuint(issues.listed, ==, cases[i].listed);
        g_assert_cmpuint(issues.omitted, ==, cases[i].omitted);
        handshake_issues_free(&issues);
    }
}

static void test_severity(void)
{
    static const char *const severities[][2] = {
        { "error", "error" }, { "warning", "warning" }, { "info", "info" },
        { "fatal", "warning" }, { "", "warning" }, { "Error", "warning" },
    };
    g_autoptr(GString) json = g_string_new("{\"issues\": [");
    HandshakeIssues issues = { 0 };
    g_autoptr(MigrationHandshakeReason) reason = NULL;
    MigrationHandshakeIssueList *l;

    for (int i = 0; i < ARRAY_SIZE(severities); i++) {
        g_string_append_printf(json, "%s{\"code\": \"%s\", \"message\": \"\","
                               " \"severity\": \"%s\"}", i ? "," : "",
                               severities[i][0], severities[i][0]);
    }
    g_string_append(json, "]}");
    reason = handshake_get_reason(json, &issues);
    l = issues.list;
    for (int i = 0; i < ARRAY_SIZE(severities); i++, l = l->next) {
        g_assert_cmpstr(l->value->code, ==, severities[i][0]);
        g_assert_cmpstr(l->value->severity, ==, severities[i][1]);
    }
    g_assert_cmpuint(issues.errors, ==, 1);
    g_assert_cmpuint(issues.warnings, ==, 4);
    handshake_issues_free(&issues);
}

static void test_commit(void)
{
    static const char *const bad[] = {
        "", "{}", "{\"digest\": 1}", "{\"digest\": \"00\", \"without\": {}}",
        "{\"digest\": \"00\", \"without\": [{\"capability\": \"x\"}]}",
        "{\"digest\": \"00\", \"without\": [\"x\"]}",
    };
    g_autoptr(MigrationHandshakeCommit) commit =
        g_new0(MigrationHandshakeCommit, 1);
    g_autoptr(MigrationHandshakeCommit) got = NULL;
    g_autoptr(GString) json = NULL;

    commit->digest = g_strdup("0123");
    commit->has_without = true;
    handshake_declined_add(&commit->without, "multifd", "refused");
    json = commit_json(commit);
    got = handshake_get_commit(json, &error_abort);
    g_assert_cmpstr(got->digest, ==, "0123");
    g_assert_cmpstr(got->without->value->capability, ==, "multifd");
    g_assert_cmpstr(got->without->value->reason, ==, "refused");

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autoptr(GString) text = g_string_new(bad[i]);
        Error *err = NULL;

        g_assert_null(handshake_get_commit(text, &err));
        assert_fails(&err, "");
    }
}

static void test_reason(void)
{
    static const struct {
        HandshakeFrameType type;
        MigrationHandshakeReason reason;
        const char *message;
    } cases[] = {
        { HANDSHAKE_FRAME_ABORT, { .message = (char *)"so\nit is" },
          "so it is" },
        { HANDSHAKE_FRAME_LAST_WORD,
          { .message = (char *)"so\nit is", .guest = (char *)"not-started" },
          "so it is" },
        { HANDSHAKE_FRAME_LAST_WORD, { .has_loaded = true, .loaded = true },
          "no reason was given" },
        { HANDSHAKE_FRAME_LOADED, { 0 }, "no reason was given" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        HandshakeIssues issues = { .omitted = 3 };
        HandshakeIssues got = { 0 };
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autoptr(GString) json = NULL;
        g_autoptr(MigrationHandshakeReason) reason = NULL;

        handshake_issue_add(&issues, "c", HANDSHAKE_ERROR, NULL, NULL, NULL,
                            "m");
        g_assert_true(handshake_put_reason(buf, cases[i].type,
                                           &cases[i].reason, &issues,
                                           &error_abort));
        json = payload(buf, cases[i].type);
        reason = handshake_get_reason(json, &got);
        g_assert_cmpstr(reason->message, ==, cases[i].message);
        g_assert_cmpstr(reason->guest, ==, cases[i].reason.guest);
        g_assert_cmpint(reason->loaded, ==, cases[i].reason.loaded);
        assert_issue(got.list->value, "c", "error", NULL, NULL, NULL, "m");
        g_assert_cmpuint(got.omitted, ==, 3);
        handshake_issues_free(&issues);
        handshake_issues_free(&got);
    }
}

/* What is of a wrong type is as if it were not there */
static void test_reason_lenient(void)
{
    static const char *const cases[] = {
        "{}", "{\"message\": 1, \"guest\": 2, \"loaded\": 3}",
        "{\"message\": null, \"guest\": {}, \"loaded\": \"true\"}",
        "[]", "nonsense",
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        HandshakeIssues issues = { 0 };
        g_autoptr(GString) json = g_string_new(cases[i]);
        g_autoptr(MigrationHandshakeReason) reason =
            handshake_get_reason(json, &issues);

        g_assert_cmpstr(reason->message, ==, "no reason was given");
        g_assert_null(reason->guest);
        g_assert_false(reason->loaded);
        g_assert_null(issues.list);
    }
}

static void test_features(void)
{
    g_autoptr(strList) all = handshake_features();
    g_autoptr(strList) peer = strlist("x late-error late-error named-channel");
    g_autoptr(strList) common = handshake_features_common(peer);

    assert_strlist(all, "named-channels late-error one-owner resume-header");
    assert_strlist(common, "late-error");
    g_assert_null(handshake_features_common(NULL));
    g_assert_true(handshake_has_name(all, "late-error"));
    g_assert_false(handshake_has_name(all, "late"));
    g_assert_false(handshake_has_name(NULL, "late-error"));
}

static void test_text(void)
{
    static const char *const texts[][2] = {
        { "", "" },
        { "plain", "plain" },
        { "a\nb\r\nc\td\033[2Je\x7f" "f\x01", "a b  c d [2Je f " },
        { "\xc3\xa4", "\xc3\xa4" },
        /* A terminal's CSI in one character, and what turns text around */
        { "a\xc2\x9b" "1mb", "a 1mb" },
        { "a\xe2\x80\xae" "b\xe2\x81\xa6" "c\xd8\x9c" "d", "a b c d" },
        { "a\xe2\x80\xa8" "b\xe2\x80\xa9" "c", "a b c" },
        { "\xf0\x9f\x90\xa7", "\xf0\x9f\x90\xa7" },
        /* What is not UTF-8 ends it */
        { "ab\xff" "cd", "ab" },
        { "ab\xc3", "ab" },
        { "\x80", "" },
    };

    g_assert_null(handshake_text(NULL));
    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        g_autofree char *text = handshake_text(texts[i][0]);

        g_assert_cmpstr(text, ==, texts[i][1]);
    }
}

/* The end of a text that is too long is no broken character */
static void test_text_cut(void)
{
    static const char *const units[] = {
        "x", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80"
    };

    for (int i = 0; i < ARRAY_SIZE(units); i++) {
        for (size_t len = 1000; len < 1050; len++) {
            g_autofree char *text = long_text(units[i], len);
            g_autofree char *cut = handshake_text(text);

            g_assert_true(g_utf8_validate(cut, -1, NULL));
            g_assert_true(g_str_has_prefix(text, cut));
            g_assert_cmpuint(strlen(cut), <=, 1024);
            g_assert_cmpuint(strlen(cut), >, MIN(strlen(text), 1024) -
                                             strlen(units[i]));
        }
    }
}

/* No text of a peer gets to people as it came, wherever it stood */
static void test_text_received(void)
{
    g_autofree char *lines = long_text("\\u20ac\\n", 3000);
    g_autofree char *plain = long_text("\xe2\x82\xac ", 1021);
    g_autoptr(GString) json = g_string_new(NULL);
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(MigrationHandshakeCommit) commit = NULL;
    g_autoptr(MigrationHandshakeReason) reason = NULL;
    HandshakeIssues issues = { 0 };

    g_string_printf(json, "{\"message\": \"%s\", \"not-understood\": [\"%s\"],"
                    " \"peer\": {\"machine\": \"%s\"}, \"declined\": ["
                    " {\"capability\": \"%s\", \"reason\": \"%s\"}],"
                    " \"issues\": [{\"code\": \"%s\", \"severity\": \"info\","
                    "  \"subject\": \"%s\", \"source\": \"%s\","
                    "  \"destination\": \"%s\", \"message\": \"%s\"}],"
                    " \"digest\": \"\", \"without\": ["
                    " {\"capability\": \"%s\", \"reason\": \"%s\"}]}",
                    lines, lines, lines, lines, lines, lines, lines, lines,
                    lines, lines, lines, lines);
    plain[1024] = '\0';
    verdict = handshake_get_verdict(json, true, &error_abort);
    g_assert_cmpstr(verdict->message->message, ==, plain);
    assert_strlist(verdict->message->not_understood, plain);
    g_assert_cmpstr(verdict->message->peer->machine, ==, plain);
    g_assert_cmpstr(verdict->message->declined->value->capability, ==, plain);
    g_assert_cmpstr(verdict->message->declined->value->reason, ==, plain);
    assert_issue(verdict->issues.list->value, plain, "info", plain, plain,
                 plain, plain);

    commit = handshake_get_commit(json, &error_abort);
    g_assert_cmpstr(commit->without->value->reason, ==, plain);

    reason = handshake_get_reason(json, &issues);
    g_assert_cmpstr(reason->message, ==, plain);
    assert_issue(issues.list->value, plain, "info", plain, plain, plain,
                 plain);
    handshake_issues_free(&issues);

    /* Of our own making, but with values from a peer */
    handshake_declined_add(&commit->without, "a\n", "b\n");
    g_assert_cmpstr(commit->without->next->value->capability, ==, "a ");
    g_assert_cmpstr(commit->without->next->value->reason, ==, "b ");
    handshake_issue_add(&issues, "a\n", HANDSHAKE_INFO, "b\n", "c\n", "d\n",
                        "%s", "e\n");
    assert_issue(issues.list->value, "a ", "info", "b ", "c ", "d ", "e ");
    handshake_issues_free(&issues);
}

static void assert_order(const HandshakeIssues *issues, const char *codes)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (MigrationHandshakeIssueList *l = issues->list; l; l = l->next) {
        g_string_append(text, l->value->code);
    }
    g_assert_cmpstr(text->str, ==, codes);
}

static void test_issues_order(void)
{
    HandshakeIssues issues = { 0 };

    handshake_issue_add(&issues, "a", HANDSHAKE_INFO, NULL, NULL, NULL, "x");
    handshake_issue_add(&issues, "B", HANDSHAKE_ERROR, NULL, NULL, NULL, "x");
    handshake_issue_add(&issues, "c", HANDSHAKE_WARNING, NULL, NULL, NULL, "x");
    handshake_issue_add(&issues, "D", HANDSHAKE_ERROR, NULL, NULL, NULL, "x");
    handshake_issue_add(&issues, "e", HANDSHAKE_INFO, NULL, NULL, NULL, "x");
    assert_order(&issues, "BDace");
    g_assert_cmpuint(issues.errors, ==, 2);
    g_assert_cmpuint(issues.warnings, ==, 1);
    g_assert_cmpuint(issues.listed, ==, 5);
    handshake_issues_free(&issues);
    g_assert_cmpuint(issues.listed, ==, 0);
    g_assert_null(issues.list);
}

static void assert_last(const HandshakeIssues *issues, const char *message)
{
    const MigrationHandshakeIssueList *l = issues->list;

    while (l->next) {
        l = l->next;
    }
    g_assert_cmpstr(l->value->message, ==, message);
}

/* No error is crowded out by something that is none */
static void test_issues_many(void)
{
    HandshakeIssues issues = { 0 };

    add_issues(&issues, HANDSHAKE_WARNING, 300, "w");
    g_assert_cmpuint(issues.listed, ==, 256);
    g_assert_cmpuint(issues.omitted, ==, 44);
    g_assert_cmpstr(issues.list->value->message, ==, "0 w");
    assert_last(&issues, "255 w");
    add_issues(&issues, HANDSHAKE_ERROR, 255, "e");
    g_assert_cmpstr(issues.list->value->message, ==, "0 e");
    assert_last(&issues, "0 w");
    g_assert_cmpuint(QAPI_LIST_LENGTH(issues.list), ==, 256);
    g_assert_cmpuint(issues.omitted, ==, 299);
    add_issues(&issues, HANDSHAKE_ERROR, 5, "f");
    g_assert_cmpuint(issues.listed, ==, 256);
    g_assert_cmpuint(issues.omitted, ==, 304);
    g_assert_cmpuint(issues.errors, ==, 260);
    g_assert_cmpuint(issues.warnings, ==, 300);
    for (MigrationHandshakeIssueList *l = issues.list; l; l = l->next) {
        g_assert_cmpstr(l->value->severity, ==, "error");
    }
    handshake_issues_free(&issues);
}

static void assert_summary(HandshakeIssues *issues, const char *expected)
{
    g_autofree char *summary = handshake_issues_summary(issues);

    g_assert_cmpstr(summary, ==, expected);
}

static void test_summary(void)
{
    HandshakeIssues issues = { 0 };

    assert_summary(&issues, "no reason was given");
    handshake_issue_add(&issues, "i", HANDSHAKE_INFO, NULL, NULL, NULL, "note");
    assert_summary(&issues, "note (i)");
    handshake_issue_add(&issues, "w", HANDSHAKE_WARNING, NULL, NULL, NULL, "W");
    assert_summary(&issues, "1 warning: W (w)");
    handshake_issue_add(&issues, "e", HANDSHAKE_ERROR, NULL, NULL, NULL, "E");
    assert_summary(&issues, "1 problem and 1 warning: E (e), ...");
    handshake_issue_add(&issues, "f", HANDSHAKE_ERROR, NULL, NULL, NULL, "F");
    assert_summary(&issues, "2 problems and 1 warning: E (e), ...");
    handshake_issues_free(&issues);
}

static void assert_words(const char *text, const char *error)
{
    g_autoptr(strList) words = strlist(text);
    Error *err = NULL;
    bool ok = handshake_ignore_validate(words, &err);

    g_assert_true(ok == !error && ok == !err);
    if (error) {
        g_assert_nonnull(strstr(error_get_pretty(err), error));
        error_free(err);
    }
}

/* A user's word is taken, or is said to be none */
static void test_ignore_words(void)
{
    static const char *const good[] = {
        "arch", "bitmap-missing", "cpu", "device", "disk", "ram-block-address",
        "ram-block-extra", "ram-block-missing", "ram-block-page-size",
        "ram-block-size", "section-extra", "section-missing", "section-schema",
        "section-version", "uuid",
        "cpu:cpu_common", "device:0000:00:03.0/virtio-blk", "uuid::",
    };
    static const char *const bad[] = {
        "protocol-version", "required-feature", "purpose", "machine-type",
        "page-size", "stream-format", "capability-unknown",
        "capability-unsupported", "capability-conflict", "parameter-unknown",
        "parameter-value", "transport", "unmigratable", "no-return",
        "channels-untried", "load", "busy",
        "section-", "section-*", "ram-block", "sektion-missing", "CPU", "cpu:",
        "busy:session", ":", ":cpu", "error", "cpu,disk",
    };
    g_autofree char *many = long_text("cpu ", 65 * 4);
    g_autofree char *long_word = long_text("x", 2000);
    g_autofree char *subject = g_strconcat("cpu:", long_word, NULL);

    g_assert_true(handshake_ignore_validate(NULL, &error_abort));
    for (int i = 0; i < ARRAY_SIZE(good); i++) {
        assert_words(good[i], NULL);
    }
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *error = g_strdup_printf("'%s' cannot be ignored",
                                                 bad[i]);
        g_autofree char *among = g_strconcat("cpu ", bad[i], NULL);

        assert_words(bad[i], error);
        assert_words(among, error);
    }
    assert_words(subject, "' cannot be ignored");
    many[strlen(many) - 1] = 0;
    assert_words(many, "At most 64");
    many[strlen(many) - 4] = 0;
    assert_words(many, NULL);
}

static void assert_ignored(const char *words, const char *code,
                           HandshakeSeverity severity, const char *subject,
                           const char *expected)
{
    g_autoptr(strList) ignore = strlist(words);
    HandshakeIssues issues = { 0 };
    const MigrationHandshakeIssue *issue;
    bool ignored = g_str_has_suffix(expected, "(ignored)");
    g_autofree char *text = NULL;

    handshake_issues_ignore(&issues, ignore);
    handshake_issue_add(&issues, code, severity, subject, "a", "b", "it is");
    g_assert_nonnull(issues.list);
    issue = issues.list->value;
    text = g_strconcat(issue->severity, ": ", issue->message, NULL);
    g_assert_cmpstr(text, ==, expected);
    g_assert_cmpuint(issues.ignored, ==, ignored);
    g_assert_cmpuint(issues.errors, ==, !strcmp(issue->severity, "error"));
    g_assert_cmpuint(issues.warnings, ==, !strcmp(issue->severity, "warning"));
    g_assert_true(handshake_issues_refuse(&issues, false) ==
                  !!issues.errors);
    g_assert_true(handshake_issues_refuse(&issues, true) ==
                  (issues.errors || (issues.warnings && !ignored)));
    /* Whoever receives it comes to the same result */
    handshake_issues_ignore(&issues, NULL);
    g_assert_cmpuint(issues.ignored, ==, 0);
    handshake_issues_ignore(&issues, ignore);
    g_assert_cmpuint(issues.ignored, ==, ignored);
    handshake_issues_free(&issues);
    g_assert_null(issues.ignore);
}

static void test_ignore(void)
{
    const HandshakeSeverity error = HANDSHAKE_ERROR;
    const HandshakeSeverity warning = HANDSHAKE_WARNING;
    const char *const ignored = "warning: it is (ignored)";

    assert_ignored("", "cpu", error, "x", "error: it is");
    assert_ignored("cpu", "cpu", error, "x", ignored);
    assert_ignored("disk cpu", "cpu", error, NULL, ignored);
    assert_ignored("cpu", "cpu", warning, "x", ignored);
    assert_ignored("cpu", "cpu", HANDSHAKE_INFO, "x", "info: it is");
    assert_ignored("disk", "cpu", error, "x", "error: it is");
    assert_ignored("uuid", "uuid", error, "uuid", ignored);

    /* Of one subject only */
    assert_ignored("cpu:x", "cpu", error, "x", ignored);
    assert_ignored("cpu:y cpu:x", "cpu", error, "x", ignored);
    assert_ignored("cpu:x", "cpu", error, "xy", "error: it is");
    assert_ignored("cpu:xy", "cpu", error, "x", "error: it is");
    assert_ignored("cpu:x", "cpu", error, NULL, "error: it is");
    assert_ignored("device:0000:00:03.0/a", "device", error, "0000:00:03.0/a",
                   ignored);
    /* As people have seen it */
    assert_ignored("cpu:a_b", "cpu", error, "a_b", ignored);

    /* Nothing but a whole word does it, and not with every code */
    assert_ignored("section-miss", "section-missing", error, "x",
                   "error: it is");
    assert_ignored("section-missing-too", "section-missing", error, "x",
                   "error: it is");
    assert_ignored("machine-type busy load cpu", "machine-type", error, "x",
                   "error: it is");
    assert_ignored("of-a-later-version", "of-a-later-version", error, "x",
                   "error: it is");
}

static void test_ignore_many(void)
{
    HandshakeIssues issues = { 0 };
    g_autoptr(strList) ignore = strlist("cpu");
    g_autofree char *text = long_text("\xc3\xa4", 2000);
    const MigrationHandshakeIssue *issue;

    handshake_issues_ignore(&issues, ignore);
    for (int i = 0; i < 300; i++) {
        handshake_issue_add(&issues, "cpu", HANDSHAKE_ERROR, "x", NULL, NULL,
                            "%s", text);
    }
    /* It says so, however long it is */
    issue = issues.list->value;
    g_assert_true(g_str_has_suffix(issue->message, "\xc3\xa4 (ignored)"));
    g_assert_cmpuint(strlen(issue->message), <=, 1024);
    g_assert_cmpuint(issues.listed, ==, 256);
    g_assert_cmpuint(issues.warnings, ==, 300);
    g_assert_cmpuint(issues.ignored, ==, 300);
    g_assert_false(handshake_issues_refuse(&issues, true));
    handshake_issues_free(&issues);

    /* A refusal is not told the wrong reason */
    handshake_issues_ignore(&issues, ignore);
    handshake_issue_add(&issues, "cpu", HANDSHAKE_ERROR, "x", NULL, NULL, "C");
    assert_summary(&issues, "C (ignored) (cpu)");
    handshake_issue_add(&issues, "disk", HANDSHAKE_WARNING, "x", NULL, NULL,
                        "D");
    g_assert_true(handshake_issues_refuse(&issues, true));
    assert_summary(&issues, "1 warning: D (disk)");
    handshake_issue_add(&issues, "uuid", HANDSHAKE_ERROR, "x", NULL, NULL, "U");
    assert_summary(&issues, "1 problem and 1 warning: U (uuid), ...");
    handshake_issues_free(&issues);
}

static void assert_numbered(const MigrationHandshakeIssueList *list)
{
    for (int i = 0; list; list = list->next, i++) {
        g_autofree char *number = g_strdup_printf("%d ", i);

        g_assert_true(g_str_has_prefix(list->value->message, number));
    }
}

/* However long they are: as many as there is room for, and a number */
static void test_fits(void)
{
    static const char *const units[] = { "x", "\"", "\xc3\xa4" };

    for (int i = 0; i < ARRAY_SIZE(units); i++) {
        g_autofree char *text = long_text(units[i], 2000);
        HandshakeIssues issues = { 0 };

        add_issues(&issues, HANDSHAKE_ERROR, 300, text);
        for (int type = HANDSHAKE_FRAME_ACCEPT;
             type <= HANDSHAKE_FRAME_LAST_WORD; type++) {
            g_autoptr(GString) json = NULL;
            g_autoptr(MigrationHandshakeReason) reason = NULL;
            HandshakeIssues got = { 0 };

            if (type <= HANDSHAKE_FRAME_REJECT) {
                g_autoptr(HandshakeVerdict) verdict =
                    verdict_new(type == HANDSHAKE_FRAME_ACCEPT);

                handshake_issues_free(&verdict->issues);
                verdict->issues = issues;
                json = verdict_json(verdict);
                verdict->issues = (HandshakeIssues) { 0 };
            } else if (type == HANDSHAKE_FRAME_ABORT ||
                       type == HANDSHAKE_FRAME_LAST_WORD) {
                json = reason_json(type, text, &issues);
            } else {
                continue;
            }
            reason = handshake_get_reason(json, &got);
            g_assert_cmpuint(got.listed, >=, 1);
            g_assert_cmpuint(got.listed, <, 256);
            g_assert_cmpuint(got.listed + got.omitted, ==, 300);
            assert_numbered(got.list);
            handshake_issues_free(&got);
        }
        handshake_issues_free(&issues);
    }
}

/* The configuration that was agreed on does not suffer from it */
static void test_fits_declined(void)
{
    g_autoptr(HandshakeVerdict) verdict = verdict_new(true);
    g_autofree char *text = long_text("x", 1024);
    g_autoptr(HandshakeVerdict) got = NULL;
    g_autoptr(GString) json = NULL;

    for (int i = 0; i < 1000; i++) {
        handshake_declined_add(&verdict->message->declined, text, text);
    }
    json = verdict_json(verdict);
    got = handshake_get_verdict(json, true, &error_abort);
    assert_strlist(got->message->capabilities, "return-path multifd");
    g_assert_cmpstr(got->message->parameters->value->value, ==, "4");
    g_assert_cmpstr(got->message->declined->value->capability, ==, "xbzrle");
    /* They are no issues */
    g_assert_cmpuint(got->issues.listed, ==, 1);
    g_assert_cmpuint(got->issues.omitted, ==, 0);
}

/* What cannot be made to fit is an error, and leaves nothing behind */
static void test_fits_not(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new();
    g_autoptr(HandshakeVerdict) verdict = verdict_new(true);
    g_autoptr(GByteArray) buf = g_byte_array_new();
    Error *err = NULL;

    g_free(hello->profile->name);
    hello->profile->name = long_text("x", 512 * 1024);
    g_assert_false(handshake_put_hello(buf, hello, &err));
    assert_fails(&err, "HELLO");
    g_free(verdict->message->message);
    verdict->message->message = long_text("x", 128 * 1024);
    g_assert_false(handshake_put_verdict(buf, verdict, &err));
    assert_fails(&err, "ACCEPT");
    g_assert_cmpuint(buf->len, ==, 0);
}

static const struct {
    const char *name;
    void (*func)(void);
} tests[] = {
    { "grease", test_grease },
    { "grease/frame", test_grease_frame },
    { "hello", test_hello },
    { "hello/minimal", test_hello_minimal },
    { "hello/strict", test_hello_strict },
    { "hello/unknown", test_hello_unknown },
    { "hello/unknown/many", test_hello_unknown_many },
    { "json/good", test_json_good },
    { "json/bad", test_json_bad },
    { "json/bounds", test_json_bounds },
    { "json/cut", test_json_cut },
    { "parts", test_parts },
    { "lists", test_lists },
    { "promises", test_promises },
    { "promises/many", test_promises_many },
    { "promises/left-out", test_promises_left_out },
    { "profile", test_profile },
    { "verdict", test_verdict },
    { "accept/strict", test_accept_strict },
    { "lenient", test_lenient },
    { "severity", test_severity },
    { "commit", test_commit },
    { "reason", test_reason },
    { "reason/lenient", test_reason_lenient },
    { "features", test_features },
    { "text", test_text },
    { "text/cut", test_text_cut },
    { "text/received", test_text_received },
    { "issues/order", test_issues_order },
    { "issues/many", test_issues_many },
    { "summary", test_summary },
    { "ignore", test_ignore },
    { "ignore/many", test_ignore_many },
    { "ignore/words", test_ignore_words },
    { "fits", test_fits },
    { "fits/declined", test_fits_declined },
    { "fits/not", test_fits_not },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strconcat("/migration/handshake/message/", tests[i].name, NULL);

        g_test_add_func(path, tests[i].func);
    }
    return g_test_run();
}
