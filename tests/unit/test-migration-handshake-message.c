/*
 * Migration handshake: the messages, from and to JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnull.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "../migration/handshake-json.h"
#include "../migration/handshake-message.h"
#include "../migration/handshake-wire.h"

#define ERROR MIGRATION_HANDSHAKE_SEVERITY_ERROR
#define WARNING MIGRATION_HANDSHAKE_SEVERITY_WARNING
#define INFO MIGRATION_HANDSHAKE_SEVERITY_INFO

/* Texts may be as long as this when they get to a person */
#define TEXT_MAX 1024

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

static QDict *dict_from(const char *text)
{
    return qobject_to(QDict, qobject_from_json(text, &error_abort));
}

static char *text_from(const QDict *dict)
{
    g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));

    return g_strdup(json->str);
}

static bool is_grease(const char *name)
{
    return strlen(name) == strlen("grease-00000000") &&
           g_str_has_prefix(name, "grease-") &&
           strspn(name + 7, "0123456789abcdef") == 8;
}

/* Removes the last item, which must be a reserved name */
static void drop_grease(strList **list)
{
    while (*list && (*list)->next) {
        list = &(*list)->next;
    }
    g_assert_nonnull(*list);
    g_assert_true(is_grease((*list)->value));
    qapi_free_strList(*list);
    *list = NULL;
}

static unsigned count_grease(const QDict *dict)
{
    unsigned count = 0;

    for (const QDictEntry *e = qdict_first(dict); e; e = qdict_next(dict, e)) {
        count += is_grease(qdict_entry_key(e));
    }
    return count;
}

static unsigned count_list_grease(const QDict *dict, const char *name)
{
    const QListEntry *entry;
    unsigned count = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(dict, name), entry) {
        QString *str = qobject_to(QString, qlist_entry_obj(entry));

        count += str && is_grease(qstring_get_str(str));
    }
    return count;
}

static HandshakeSection *add_section(HandshakeProfile *profile,
                                     const char *name, uint32_t instance,
                                     uint32_t version)
{
    HandshakeSection *section;

    profile->sections = profile->sections ?: handshake_sections_new();
    section = handshake_sections_add(profile->sections, name);
    section->instance = instance;
    section->version = version;
    return section;
}

static HandshakeRAMBlock *add_block(HandshakeProfile *profile,
                                    const char *name, uint64_t size)
{
    HandshakeRAMBlock *block;

    profile->ram_blocks = profile->ram_blocks ?: handshake_ram_blocks_new();
    block = handshake_ram_blocks_add(profile->ram_blocks, name);
    block->size = size;
    block->max_size = size;
    return block;
}

/* Items of a list in the profile that nobody knows */
static unsigned count_greased_items(const QDict *hello, const char *list)
{
    QDict *profile = qdict_get_qdict(hello, "profile");
    const QListEntry *entry;
    unsigned count = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(profile, list), entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (count_grease(item)) {
            /* A known name would make it one that is known */
            g_assert_cmpuint(qdict_size(item), ==, 1);
            count++;
        }
    }
    return count;
}

static void add_parts(HandshakeProfile *profile)
{
    HandshakeRAMBlock *block;

    add_section(profile, "ram", 0, 4);
    for (int i = 0; i < 3; i++) {
        add_section(profile, "cpu", i, 12);
    }
    add_section(profile, "cpu", UINT32_MAX, UINT32_MAX);
    add_section(profile, "pcspk", 0, 1)->conditional = true;
    add_section(profile, "dirty-bitmap", 0, 1)->idle = true;

    add_block(profile, "pc.ram", 1 << 30)->page_size = 4096;
    block = add_block(profile, "/objects/file", UINT64_MAX);
    block->max_size = UINT64_MAX - 1;
    block->page_size = 2 << 20;
    block->resizeable = true;
    block->shared_file = true;
    block->has_address = true;
    block->address = UINT64_MAX;
}

static HandshakeHello *hello_new(void)
{
    HandshakeHello *hello = handshake_hello_new();
    HandshakeProfile *profile = hello->profile;
    QDict *group = qdict_new();

    QAPI_LIST_PREPEND(hello->versions, 1);
    QAPI_LIST_PREPEND(hello->versions, UINT32_MAX);
    hello->purpose = g_strdup("migrate");
    hello->required = strlist("settings");
    hello->features = strlist("named-channels late-error");
    hello->optional = strlist("multifd postcopy-ram");
    hello->warnings_as_errors = true;

    profile->qemu_version = g_strdup("10.0.0");
    profile->package = g_strdup("Debian 1:10.0.0+ds-1");
    profile->arch = g_strdup("x86_64");
    profile->machine = g_strdup("pc-q35-10.0");
    profile->page_size = 4096;
    profile->host_page_size = 65536;
    profile->uuid = g_strdup("00112233-4455-6677-8899-aabbccddeeff");
    profile->name = g_strdup("\"\\\n\xc3\xa4 \xf0\x9f\x98\x80");
    profile->capabilities = strlist("events return-path dirty-bitmaps");
    profile->required = strlist("dirty-bitmaps");
    profile->parameters = qdict_new();
    qdict_put_int(group, "multifd-channels", 4);
    qdict_put_str(group, "multifd-compression", "zstd");
    qdict_put(profile->parameters, "multifd", group);
    profile->stream = qdict_new();
    qdict_put_bool(profile->stream, "send-configuration", true);
    qdict_put(profile->stream, "big", qnum_from_uint(UINT64_MAX));
    add_parts(profile);
    profile->unmigratable = strlist("0000:00:02.0/nvme usb-wacom");
    QAPI_LIST_PREPEND(profile->blockers, g_strdup("the disk is in use"));
    return hello;
}

static HandshakeHello *hello_parse(const char *text, strList **unknown)
{
    return handshake_hello_from_json(text, strlen(text), unknown, &error_abort);
}

static void test_hello(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autofree char *text = handshake_hello_to_json(hello);
    g_autoptr(HandshakeHello) got = hello_parse(text, NULL);
    HandshakeProfile *profile = got->profile;

    g_assert_cmpuint(got->versions->value, ==, UINT32_MAX);
    g_assert_cmpuint(got->versions->next->value, ==, 1);
    g_assert_nonnull(got->versions->next->next);
    g_assert_null(got->versions->next->next->next);
    g_assert_cmpstr(got->purpose, ==, "migrate");
    g_assert_true(got->warnings_as_errors);
    assert_strlist(got->required, "settings");
    drop_grease(&got->features);
    /* Those of a later version as well: the destination judges them */
    assert_strlist(got->features, "named-channels late-error");
    assert_strlist(got->optional, "multifd postcopy-ram");

    g_assert_cmpstr(profile->qemu_version, ==, "10.0.0");
    g_assert_cmpstr(profile->package, ==, "Debian 1:10.0.0+ds-1");
    g_assert_cmpstr(profile->arch, ==, "x86_64");
    g_assert_cmpstr(profile->machine, ==, "pc-q35-10.0");
    g_assert_cmpuint(profile->page_size, ==, 4096);
    g_assert_cmpuint(profile->host_page_size, ==, 65536);
    g_assert_cmpstr(profile->uuid, ==, hello->profile->uuid);
    g_assert_cmpstr(profile->name, ==, hello->profile->name);
    assert_strlist(profile->capabilities, "events return-path dirty-bitmaps");
    assert_strlist(profile->required, "dirty-bitmaps");
    g_assert_true(qobject_is_equal(QOBJECT(profile->parameters),
                                   QOBJECT(hello->profile->parameters)));
    g_assert_true(qobject_is_equal(QOBJECT(profile->stream),
                                   QOBJECT(hello->profile->stream)));
    assert_strlist(profile->unmigratable, "0000:00:02.0/nvme usb-wacom");
    g_assert_cmpstr(profile->blockers->value, ==, "the disk is in use");
    g_assert_null(profile->blockers->next);
    /* For files only */
    g_assert_null(strstr(text, "\"declined\""));
    g_assert_null(strstr(text, "\"combinations\""));
    g_assert_null(got->declined);
    g_assert_null(got->combinations);
}

/* What may be unset is not sent, and not made up by the reader */
static void test_hello_minimal(void)
{
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    g_autofree char *text = NULL;
    g_autoptr(HandshakeHello) got = NULL;
    HandshakeProfile *profile;
    QDict *dict;

    hello->purpose = g_strdup("check");
    text = handshake_hello_to_json(hello);
    dict = dict_from(text);
    g_assert_false(qdict_haskey(dict, "warnings-as-errors"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"), "uuid"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"), "page-size"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"),
                                "host-page-size"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"), "sections"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"),
                                "ram-blocks"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"),
                                "unmigratable"));
    g_assert_false(qdict_haskey(qdict_get_qdict(dict, "profile"), "blockers"));
    qobject_unref(dict);

    got = hello_parse(text, NULL);
    profile = got->profile;
    g_assert_cmpstr(got->purpose, ==, "check");
    g_assert_null(got->required);
    g_assert_false(got->warnings_as_errors);
    g_assert_null(profile->qemu_version);
    g_assert_null(profile->package);
    g_assert_null(profile->arch);
    g_assert_null(profile->machine);
    g_assert_cmpuint(profile->page_size, ==, 0);
    g_assert_null(profile->uuid);
    g_assert_null(profile->name);
    g_assert_null(profile->capabilities);
    g_assert_null(profile->required);
    g_assert_null(profile->parameters);
    g_assert_null(profile->stream);
    g_assert_cmpuint(profile->host_page_size, ==, 0);
    g_assert_null(profile->sections);
    g_assert_null(profile->ram_blocks);
    g_assert_null(profile->unmigratable);
    g_assert_null(profile->blockers);
}

static HandshakeHello *profile_parse(const char *text)
{
    return handshake_hello_from_profile(text, strlen(text), &error_abort);
}

/* A file has what a frame has, but for grease, and what goes together */
static void test_profile(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autofree char *frame = handshake_hello_to_json(hello);
    g_autofree char *text = NULL;
    g_autoptr(HandshakeHello) got = NULL;
    g_autoptr(HandshakeHello) framed = hello_parse(frame, NULL);
    const HandshakeCombination *combination;
    strList *unknown = NULL;
    QDict *dict;

    handshake_declined_add(&hello->declined, "x-ignore-shared", "no file");
    handshake_combination_add(hello, "multifd", "postcopy-ram", "not both");
    handshake_combination_add(hello, "postcopy-preempt", "postcopy-ram", NULL);
    dict = handshake_hello_to_profile(hello);
    text = text_from(dict);
    g_assert_null(strstr(text, "grease-"));
    qobject_unref(dict);

    /* A frame has no such members, and nobody looks at them there */
    got = hello_parse(text, &unknown);
    g_assert_null(got->declined);
    g_assert_null(got->combinations);
    g_assert_true(handshake_strlist_contains(unknown, "declined"));
    g_assert_true(handshake_strlist_contains(unknown, "combinations"));
    qapi_free_strList(unknown);
    handshake_hello_free(got);

    got = profile_parse(text);
    assert_strlist(got->optional, "multifd postcopy-ram");
    assert_strlist(got->features, "named-channels late-error");
    g_assert_null(got->versions->next->next);
    g_assert_cmpuint(got->profile->sections->len, ==,
                     framed->profile->sections->len);
    g_assert_cmpuint(got->profile->ram_blocks->len, ==,
                     framed->profile->ram_blocks->len);
    g_assert_cmpstr(got->declined->value->capability, ==, "x-ignore-shared");
    g_assert_cmpstr(got->declined->value->reason, ==, "no file");
    g_assert_null(got->declined->next);

    g_assert_cmpuint(got->combinations->len, ==, 2);
    combination = g_ptr_array_index(got->combinations, 0);
    g_assert_cmpstr(combination->capability, ==, "multifd");
    g_assert_cmpstr(combination->with, ==, "postcopy-ram");
    g_assert_cmpstr(combination->reason, ==, "not both");
    combination = g_ptr_array_index(got->combinations, 1);
    g_assert_cmpstr(combination->capability, ==, "postcopy-preempt");
    g_assert_cmpstr(combination->with, ==, "postcopy-ram");
    g_assert_null(combination->reason);
}

/* One of another shape is none, and no reason to refuse a profile */
static void test_declined_lenient(void)
{
    static const char *const odd[] = {
        "null", "3", "\"\"", "{}", "[]", "[ 3, null, \"multifd\" ]",
    };

    for (int i = 0; i < ARRAY_SIZE(odd); i++) {
        g_autofree char *text =
            g_strdup_printf("{ \"versions\": [1], \"purpose\": \"check\","
                            "  \"required\": [], \"declined\": %s, "
                            "\"combinations\": %s }", odd[i], odd[i]);
        g_autoptr(HandshakeHello) hello = profile_parse(text);

        g_assert_null(hello->declined);
        g_assert_null(hello->combinations);
    }
}

/* What is said in a way that is not known yet still keeps a guest there */
static void test_obstacles(void)
{
    g_autoptr(HandshakeHello) hello = hello_parse(
        "{ \"versions\": [1], \"purpose\": \"check\","
        "  \"required\": [],"
        "  \"profile\": { \"blockers\": [ 3, \"why\" ],"
        "                 \"unmigratable\": [ {} ] } }", NULL);

    g_assert_cmpstr(hello->profile->blockers->value, ==,
                    "not understood here");
    g_assert_cmpstr(hello->profile->blockers->next->value, ==, "why");
    g_assert_null(hello->profile->blockers->next->next);
    g_assert_cmpstr(hello->profile->unmigratable->value, ==,
                    "not understood here");
    g_assert_null(hello->profile->unmigratable->next);
}

static bool in_list(const char *name, const char *names)
{
    g_auto(GStrv) split = g_strsplit(names, " ", 0);

    return g_strv_contains((const char *const *)split, name);
}

typedef bool (*TryFunc)(const char *text, Error **errp);

static bool try_hello(const char *text, Error **errp)
{
    g_autoptr(HandshakeHello) hello =
        handshake_hello_from_json(text, strlen(text), NULL, errp);

    return hello;
}

static bool try_accept(const char *text, Error **errp)
{
    g_autoptr(HandshakeVerdict) verdict =
        handshake_verdict_from_json(text, strlen(text), true, errp);

    return verdict;
}

static bool try_reject(const char *text, Error **errp)
{
    g_autoptr(HandshakeVerdict) verdict =
        handshake_verdict_from_json(text, strlen(text), false, errp);

    return verdict;
}

static bool try_commit(const char *text, Error **errp)
{
    g_autofree char *digest =
        handshake_commit_from_json(text, strlen(text), errp);

    return digest;
}

static bool try_abort(const char *text, Error **errp)
{
    HandshakeIssues issues = { 0 };
    g_autofree char *message =
        handshake_abort_from_json(text, strlen(text), &issues, errp);

    handshake_issues_free(&issues);
    return message;
}

static void assert_try_fails(TryFunc try, const QDict *dict,
                             const char *expected)
{
    g_autofree char *text = text_from(dict);
    Error *err = NULL;

    if (try(text, &err)) {
        g_error("accepted, but expected '%s': %s", expected, text);
    }
    g_assert_nonnull(err);
    if (!strstr(error_get_pretty(err), expected)) {
        g_error("expected '%s' in '%s'", expected, error_get_pretty(err));
    }
    error_free(err);
}

static void assert_try_works(TryFunc try, const QDict *dict)
{
    g_autofree char *text = text_from(dict);

    g_assert_true(try(text, &error_abort));
}

/*
 * Takes each member out of @dict, which is part of @whole; gives it a value of
 * each other type; and adds one that nobody knows.  Those in @core must be
 * there, and those in @tolerant may be anything.
 */
static void check_members(TryFunc try, const QDict *whole, QDict *dict,
                          const char *core, const char *tolerant)
{
    QDict *original = qdict_clone_shallow(dict);
    QObject *values[] = {
        QOBJECT(qnull()), QOBJECT(qbool_from_bool(true)),
        QOBJECT(qnum_from_int(-1)), QOBJECT(qstring_from_str("1")),
        QOBJECT(qlist_new()), QOBJECT(qdict_new()),
    };

    assert_try_works(try, whole);
    for (const QDictEntry *e = qdict_first(original); e;
         e = qdict_next(original, e)) {
        const char *name = qdict_entry_key(e);
        QObject *value = qdict_entry_value(e);

        if (is_grease(name)) {
            continue;
        }
        qdict_del(dict, name);
        if (in_list(name, core)) {
            g_autofree char *expected = g_strdup_printf("'%s' is missing",
                                                        name);

            assert_try_fails(try, whole, expected);
        } else {
            assert_try_works(try, whole);
        }
        for (int i = 0; i < ARRAY_SIZE(values); i++) {
            g_autofree char *expected = g_strdup_printf("'%s' is not", name);

            /* A negative number is never right */
            if (qobject_type(values[i]) == qobject_type(value) &&
                qobject_type(value) != QTYPE_QNUM) {
                continue;
            }
            qdict_put_obj(dict, name, qobject_ref(values[i]));
            if (in_list(name, tolerant)) {
                assert_try_works(try, whole);
            } else {
                assert_try_fails(try, whole, expected);
            }
        }
        qdict_put_obj(dict, name, qobject_ref(value));
        assert_try_works(try, whole);
    }

    for (int i = 0; i < ARRAY_SIZE(values); i++) {
        qdict_put_obj(dict, "from-the-future", qobject_ref(values[i]));
        assert_try_works(try, whole);
        qobject_unref(values[i]);
    }
    qdict_del(dict, "from-the-future");
    qobject_unref(original);
}

/* All members of all items of a list in the profile */
static void check_items(const QDict *hello, const char *list,
                        const char *core)
{
    QDict *profile = qdict_get_qdict(hello, "profile");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(profile, list), entry) {
        check_members(try_hello, hello,
                      qobject_to(QDict, qlist_entry_obj(entry)), core, "");
    }
}

static void test_hello_members(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autofree char *text = handshake_hello_to_json(hello);
    QDict *dict = dict_from(text);

    check_members(try_hello, dict, dict, "versions purpose required", "");
    check_members(try_hello, dict, qdict_get_qdict(dict, "profile"), "", "");
    check_items(dict, "sections", "version");
    check_items(dict, "ram-blocks", "size");
    qobject_unref(dict);
}

static void test_hello_items(void)
{
    g_autoptr(HandshakeHello) hello =
        hello_parse("{\"versions\": [\"2\", 7, null, -1, 4294967296, {}, [3],"
                    "               4294967295, true, 1],"
                    " \"purpose\": \"migrate\","
                    " \"required\": [\"a\", \"b\"],"
                    " \"features\": [\"d\", false, \"e\"],"
                    " \"optional-capabilities\": [0],"
                    " \"profile\": {\"capabilities\": [{}, \"f\"]}}", NULL);

    g_assert_cmpuint(hello->versions->value, ==, 7);
    g_assert_cmpuint(hello->versions->next->value, ==, UINT32_MAX);
    g_assert_cmpuint(hello->versions->next->next->value, ==, 1);
    g_assert_null(hello->versions->next->next->next);
    assert_strlist(hello->required, "a b");
    assert_strlist(hello->features, "d e");
    g_assert_null(hello->optional);
    assert_strlist(hello->profile->capabilities, "f");
}

/* What the other side must honour is not to be skipped */
static void test_strict_items(void)
{
    static const char *const items[] = { "null", "1", "true", "[]", "{}" };

    for (int i = 0; i < ARRAY_SIZE(items); i++) {
        g_autofree char *hello =
            g_strdup_printf("{\"versions\": [], \"purpose\": \"\","
                            " \"required\": [\"a\", %s]}", items[i]);
        g_autofree char *profile =
            g_strdup_printf("{\"versions\": [], \"purpose\": \"\","
                            " \"required\": [], \"profile\":"
                            " {\"required-capabilities\": [%s]}}", items[i]);
        g_autofree char *verdict =
            g_strdup_printf("{\"capabilities\": [\"a\", %s]}", items[i]);
        QDict *dict = dict_from(hello);

        assert_try_fails(try_hello, dict, "'required' is not");
        qobject_unref(dict);
        dict = dict_from(profile);
        assert_try_fails(try_hello, dict, "'required-capabilities' is not");
        qobject_unref(dict);
        dict = dict_from(verdict);
        assert_try_fails(try_accept, dict, "'capabilities' is not");
        /* There it means nothing */
        assert_try_works(try_reject, dict);
        qobject_unref(dict);
    }
}

static void test_hello_bad_json(void)
{
    static const char *const texts[] = {
        "", "[]", "{", "{}x", "{'versions':[],'purpose':'','required':[]}",
        "{\"versions\":[1.0],\"purpose\":\"\",\"required\":[]}",
        "{\"versions\":[],\"versions\":[],\"purpose\":\"\",\"required\":[]}",
    };

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        TryFunc tries[] = {
            try_hello, try_accept, try_reject, try_commit, try_abort
        };

        for (int j = 0; j < ARRAY_SIZE(tries); j++) {
            Error *err = NULL;

            g_assert_false(tries[j](texts[i], &err));
            g_assert_nonnull(err);
            error_free(err);
        }
    }
}

static unsigned strlist_len(const strList *list)
{
    unsigned len = 0;

    for (; list; list = list->next) {
        len++;
    }
    return len;
}

static void assert_contains(const strList *list, const char *name)
{
    for (; list; list = list->next) {
        if (!strcmp(list->value, name)) {
            return;
        }
    }
    g_error("'%s' is missing", name);
}

static void test_not_understood(void)
{
    strList *unknown = NULL;
    g_autoptr(HandshakeHello) hello =
        hello_parse("{\"versions\": [], \"purpose\": \"\", \"required\": [],"
                    " \"features\": [], \"optional-capabilities\": [],"
                    " \"warnings-as-errors\": false, \"later\": {\"x\": 1},"
                    " \"profile\": {\"qemu-version\": \"\", \"package\": \"\","
                    "  \"arch\": \"\", \"machine\": \"\", \"page-size\": 1,"
                    "  \"uuid\": \"\", \"name\": \"\", \"capabilities\": [],"
                    "  \"required-capabilities\": [], \"parameters\": {},"
                    "  \"stream\": {}, \"host-page-size\": 1,"
                    "  \"sections\": [], \"ram-blocks\": [],"
                    "  \"unmigratable\": [],"
                    "  \"ram\": 1, \"later\": null}}",
                    &unknown);

    g_assert_cmpuint(strlist_len(unknown), ==, 3);
    assert_contains(unknown, "later");
    assert_contains(unknown, "profile.ram");
    assert_contains(unknown, "profile.later");

    /* More are added to them */
    handshake_hello_free(g_steal_pointer(&hello));
    hello = hello_parse("{\"versions\": [], \"purpose\": \"\","
                        " \"required\": [], \"what\": 1}", &unknown);
    g_assert_cmpuint(strlist_len(unknown), ==, 4);
    assert_contains(unknown, "what");
    qapi_free_strList(unknown);
}

static void test_not_understood_bounded(void)
{
    g_autoptr(HandshakeHello) hello = NULL;
    g_autoptr(GString) text = g_string_new("{\"versions\": [],"
                                           " \"purpose\": \"\","
                                           " \"required\": []");
    strList *unknown = NULL;

    for (int i = 0; i < 200; i++) {
        g_string_append_printf(text, ",\"a%x\":0", i);
        if (i == 62 || i == 63) {
            g_autofree char *some = g_strconcat(text->str, "}", NULL);

            hello = hello_parse(some, &unknown);
            g_assert_cmpuint(strlist_len(unknown), ==, i + 1);
            handshake_hello_free(g_steal_pointer(&hello));
            qapi_free_strList(unknown);
            unknown = NULL;
        }
    }
    g_string_append(text, ",\"profile\":{\"b\":0}}");
    hello = hello_parse(text->str, &unknown);
    g_assert_cmpuint(strlist_len(unknown), ==, 64);
    qapi_free_strList(unknown);
}

static void test_grease_name(void)
{
    g_autofree char *first = handshake_grease_name();
    bool differs = false;

    g_assert_true(is_grease(first));
    for (int i = 0; i < 8; i++) {
        g_autofree char *name = handshake_grease_name();

        g_assert_true(is_grease(name));
        differs |= strcmp(name, first) != 0;
    }
    g_assert_true(differs);
}

static void test_grease_number(void)
{
    uint32_t seen = 0;

    for (int i = 0; i < 4096; i++) {
        uint16_t number = handshake_grease_number();

        /* 0x0a0a, 0x1a1a, ... 0xfafa */
        g_assert_cmphex(number & 0x0f0f, ==, 0x0a0a);
        g_assert_cmphex(number >> 8, ==, number & 0xff);
        seen |= 1u << (number >> 12);
    }
    g_assert_cmphex(seen, ==, 0xffff);
}

static void test_grease_sent(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    HandshakeIssues issues = { 0 };
    g_autofree char *hello_text = handshake_hello_to_json(hello);
    g_autofree char *hello_text2 = handshake_hello_to_json(hello);
    g_autofree char *verdict_text = NULL;
    g_autofree char *commit_text = handshake_commit_to_json("00");
    g_autofree char *abort_text = handshake_abort_to_json("why", &issues);
    const QListEntry *entry;
    unsigned count = 0;
    QDict *dict;

    dict = dict_from(hello_text);
    g_assert_cmpuint(count_grease(dict), ==, 1);
    g_assert_cmpuint(count_grease(qdict_get_qdict(dict, "profile")), ==, 1);
    g_assert_cmpuint(count_greased_items(dict, "sections"), ==, 1);
    g_assert_cmpuint(count_greased_items(dict, "ram-blocks"), ==, 1);
    g_assert_cmpuint(count_list_grease(dict, "features"), ==, 1);
    /* What is declined is shown to people */
    g_assert_cmpuint(count_list_grease(dict, "optional-capabilities"), ==, 0);
    /* The peer must know all of these */
    g_assert_cmpuint(count_list_grease(dict, "required"), ==, 0);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(dict, "versions"), entry) {
        QNum *num = qobject_to(QNum, qlist_entry_obj(entry));

        count += (qnum_get_uint(num) & 0x0f0f) == 0x0a0a;
    }
    g_assert_cmpuint(count, ==, 1);
    qobject_unref(dict);
    /* Another one each time */
    g_assert_cmpstr(hello_text, !=, hello_text2);

    for (int i = 0; i < 2; i++) {
        verdict->accept = i;
        verdict->peer = verdict->peer ?: g_new0(MigrationHandshakePeer, 1);
        g_free(verdict_text);
        verdict_text = handshake_verdict_to_json(verdict);
        dict = dict_from(verdict_text);
        g_assert_cmpuint(count_grease(dict), ==, 1);
        g_assert_cmpuint(count_grease(qdict_get_qdict(dict, "peer")), ==, 1);
        g_assert_cmpuint(count_list_grease(dict, "features"), ==, 1);
        qobject_unref(dict);
    }

    dict = dict_from(commit_text);
    g_assert_cmpuint(count_grease(dict), ==, 1);
    qobject_unref(dict);

    dict = dict_from(abort_text);
    g_assert_cmpuint(count_grease(dict), ==, 1);
    qobject_unref(dict);
}

static HandshakeVerdict *verdict_new(bool accept)
{
    HandshakeVerdict *verdict = handshake_verdict_new();
    MigrationHandshakeDeclined *declined;
    QDict *group = qdict_new();

    verdict->accept = accept;
    verdict->version = 1;
    verdict->message = accept ? NULL : g_strdup("2 problems");
    verdict->features = strlist("late-error named-channels");
    verdict->not_understood = strlist("later profile.ram");
    verdict->peer = g_new0(MigrationHandshakePeer, 1);
    verdict->peer->qemu_version = g_strdup("11.0.0");
    verdict->peer->package = g_strdup("v11.0.0");
    verdict->peer->arch = g_strdup("aarch64");
    verdict->peer->machine = g_strdup("virt-11.0");
    verdict->capabilities = strlist("return-path multifd");
    declined = g_new0(MigrationHandshakeDeclined, 1);
    declined->capability = g_strdup("postcopy-ram");
    declined->reason = g_strdup("no userfaultfd");
    QAPI_LIST_PREPEND(verdict->declined, declined);
    verdict->parameters = qdict_new();
    qdict_put_int(group, "multifd-channels", 4);
    qdict_put(verdict->parameters, "multifd", group);
    handshake_issue_add(&verdict->issues, "arch", ERROR, "arch", "x86_64",
                        "aarch64", "%s and %s differ", "they", "it");
    handshake_issue_add(&verdict->issues, "uuid", WARNING, NULL, NULL, NULL,
                        "100%% wrong");
    handshake_issue_add(&verdict->issues, "note", INFO, NULL, "a", NULL, "n");
    return verdict;
}

static HandshakeVerdict *verdict_parse(const char *text, bool accept)
{
    return handshake_verdict_from_json(text, strlen(text), accept,
                                       &error_abort);
}

static void assert_issue(const MigrationHandshakeIssue *issue,
                         const char *code, MigrationHandshakeSeverity severity,
                         const char *subject, const char *source,
                         const char *destination, const char *message)
{
    g_assert_cmpstr(issue->code, ==, code);
    g_assert_cmpint(issue->severity, ==, severity);
    g_assert_cmpstr(issue->subject, ==, subject);
    g_assert_cmpstr(issue->source, ==, source);
    g_assert_cmpstr(issue->destination, ==, destination);
    g_assert_cmpstr(issue->message, ==, message);
}

static void assert_verdict_issues(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssueList *l = issues->list;

    assert_issue(l->value, "arch", ERROR, "arch", "x86_64", "aarch64",
                 "they and it differ");
    assert_issue(l->next->value, "uuid", WARNING, NULL, NULL, NULL,
                 "100% wrong");
    assert_issue(l->next->next->value, "note", INFO, NULL, "a", NULL, "n");
    g_assert_null(l->next->next->next);
    g_assert_cmpuint(issues->listed, ==, 3);
    g_assert_cmpuint(issues->omitted, ==, 0);
    g_assert_cmpuint(issues->errors, ==, 1);
    g_assert_cmpuint(issues->warnings, ==, 1);
}

static void test_accept(void)
{
    g_autoptr(HandshakeVerdict) verdict = verdict_new(true);
    g_autofree char *text = handshake_verdict_to_json(verdict);
    g_autoptr(HandshakeVerdict) got = verdict_parse(text, true);

    g_assert_true(got->accept);
    g_assert_cmpuint(got->version, ==, 1);
    g_assert_null(got->message);
    /* Without what we don't know, and without grease */
    assert_strlist(got->features, "named-channels");
    assert_strlist(got->not_understood, "later profile.ram");
    g_assert_cmpstr(got->peer->qemu_version, ==, "11.0.0");
    g_assert_cmpstr(got->peer->package, ==, "v11.0.0");
    g_assert_cmpstr(got->peer->arch, ==, "aarch64");
    g_assert_cmpstr(got->peer->machine, ==, "virt-11.0");
    assert_strlist(got->capabilities, "return-path multifd");
    g_assert_cmpstr(got->declined->value->capability, ==, "postcopy-ram");
    g_assert_cmpstr(got->declined->value->reason, ==, "no userfaultfd");
    g_assert_null(got->declined->next);
    g_assert_true(qobject_is_equal(QOBJECT(got->parameters),
                                   QOBJECT(verdict->parameters)));
    assert_verdict_issues(&got->issues);
}

static void test_reject(void)
{
    g_autoptr(HandshakeVerdict) verdict = verdict_new(false);
    g_autofree char *text = handshake_verdict_to_json(verdict);
    g_autoptr(HandshakeVerdict) got = verdict_parse(text, false);

    g_assert_false(got->accept);
    g_assert_cmpstr(got->message, ==, "2 problems");
    assert_strlist(got->features, "named-channels");
    g_assert_cmpstr(got->peer->machine, ==, "virt-11.0");
    assert_verdict_issues(&got->issues);
    /* There is no configuration that it could be about */
    g_assert_null(got->capabilities);
    g_assert_null(got->declined);
    g_assert_null(got->parameters);
}

static void test_verdict_minimal(void)
{
    for (int i = 0; i < 2; i++) {
        g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
        g_autoptr(HandshakeVerdict) empty = verdict_parse("{}", i);
        g_autoptr(HandshakeVerdict) got = NULL;
        g_autofree char *text = NULL;

        verdict->accept = i;
        text = handshake_verdict_to_json(verdict);
        got = verdict_parse(text, i);
        g_assert_null(got->message);
        g_assert_null(got->parameters);
        g_assert_null(got->issues.list);

        /* Whoever looks at the peer need not ask whether there is one */
        g_assert_nonnull(empty->peer);
        g_assert_null(empty->peer->machine);
        g_assert_cmpuint(empty->version, ==, 0);
        g_assert_null(empty->message);
        g_assert_null(empty->features);
        g_assert_null(empty->capabilities);
        g_assert_null(empty->declined);
        g_assert_null(empty->parameters);
        g_assert_null(empty->issues.list);
        g_assert_cmpuint(empty->issues.omitted, ==, 0);
    }
}

static QDict *list_first(const QDict *dict, const char *name)
{
    QList *list = qdict_get_qlist(dict, name);

    return qobject_to(QDict, qlist_entry_obj(qlist_first(list)));
}

static const char issue_members[] =
    "code severity subject source destination message";

static void test_verdict_members(void)
{
    for (int i = 0; i < 2; i++) {
        TryFunc try = i ? try_accept : try_reject;
        g_autoptr(HandshakeVerdict) verdict = verdict_new(i);
        g_autofree char *text = NULL;
        QDict *dict;

        verdict->issues.omitted = 5;
        text = handshake_verdict_to_json(verdict);
        dict = dict_from(text);
        /* In a refusal nothing is worth losing the reason for it */
        check_members(try, dict, dict, "",
                      i ? "message features not-understood peer declined "
                          "issues issues-omitted"
                        : "version message features not-understood peer "
                          "issues issues-omitted");
        check_members(try, dict, qdict_get_qdict(dict, "peer"), "",
                      "qemu-version package arch machine");
        check_members(try, dict, list_first(dict, "issues"), "", issue_members);
        if (i) {
            check_members(try, dict, list_first(dict, "declined"), "",
                          "capability reason");
        }
        qobject_unref(dict);
    }
}

static void test_verdict_items(void)
{
    g_autoptr(HandshakeVerdict) verdict =
        verdict_parse("{\"version\": 18446744073709551615,"
                      " \"capabilities\": [\"a\"], \"message\": 7,"
                      " \"declined\": [0, {}, \"x\", {\"capability\": \"b\","
                      "                              \"reason\": \"c\"}],"
                      " \"issues\": [null, {}, [], {\"code\": \"d\"}]}", true);
    const MigrationHandshakeIssueList *l = verdict->issues.list;
    const MigrationHandshakeDeclinedList *d = verdict->declined;

    g_assert_cmpuint(verdict->version, ==, UINT32_MAX);
    assert_strlist(verdict->capabilities, "a");
    g_assert_null(verdict->message);
    g_assert_nonnull(d->value->capability);
    g_assert_nonnull(d->value->reason);
    g_assert_cmpstr(d->next->value->capability, ==, "b");
    g_assert_cmpstr(d->next->value->reason, ==, "c");
    g_assert_null(d->next->next);
    g_assert_nonnull(l->value->code);
    g_assert_nonnull(l->value->message);
    g_assert_cmpstr(l->next->value->code, ==, "d");
    g_assert_null(l->next->next);
}

static void test_severity(void)
{
    static const struct {
        const char *text;
        MigrationHandshakeSeverity severity;
    } severities[] = {
        { "\"severity\": \"error\"", ERROR },
        { "\"severity\": \"warning\"", WARNING },
        { "\"severity\": \"info\"", INFO },
        { "\"severity\": \"fatal\"", WARNING },
        { "\"severity\": \"Error\"", WARNING },
        { "\"severity\": \"\"", WARNING },
        { "\"x\": 1", WARNING },
    };

    for (int i = 0; i < ARRAY_SIZE(severities); i++) {
        g_autofree char *text =
            g_strdup_printf("{\"issues\": [{\"code\": \"nobody-knows\", %s,"
                            " \"message\": \"m\"}]}", severities[i].text);
        g_autoptr(HandshakeVerdict) verdict = verdict_parse(text, false);

        assert_issue(verdict->issues.list->value, "nobody-knows",
                     severities[i].severity, NULL, NULL, NULL, "m");
        g_assert_cmpuint(verdict->issues.errors, ==,
                         severities[i].severity == ERROR);
        g_assert_cmpuint(verdict->issues.warnings, ==,
                         severities[i].severity == WARNING);
    }
}

/* Whoever adds a feature had better tell the specification */
static void test_features(void)
{
    static const char *const others[] = {
        "", "nobody-knows", "grease-00000000", "named-channel",
        "named-channels2", "named-channels ", " named-channels",
        "Named-Channels", "named_channels", "multifd",
    };
    g_autoptr(strList) first = handshake_features();
    g_autoptr(strList) second = handshake_features();

    g_assert_cmpstr(HANDSHAKE_FEATURE_NAMED_CHANNELS, ==, "named-channels");
    assert_strlist(first, "named-channels");
    /* Each caller has a list of its own */
    second->value[0] = 'N';
    assert_strlist(first, "named-channels");
    qapi_free_strList(first);
    first = handshake_features();
    assert_strlist(first, "named-channels");

    for (strList *l = first; l; l = l->next) {
        g_assert_true(handshake_feature_known(l->value));
    }
    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        g_assert_false(handshake_feature_known(others[i]));
    }
}

static void test_features_common(void)
{
    static const char *const cases[][2] = {
        { "", "" },
        { "nobody-knows grease-00000000 a a", "" },
        { "named-channel named-channels2 Named-Channels", "" },
        { "named-channels", "named-channels" },
        { "nobody-knows named-channels", "named-channels" },
        { "named-channels grease-00000000", "named-channels" },
        /* Each once */
        { "named-channels a named-channels", "named-channels" },
    };
    g_autoptr(strList) own = handshake_features();
    g_autoptr(strList) all = handshake_features_common(own);

    g_assert_null(handshake_features_common(NULL));
    assert_strlist(all, "named-channels");
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(strList) peer = strlist(cases[i][0]);
        g_autoptr(strList) common = handshake_features_common(peer);

        assert_strlist(common, cases[i][1]);
        /* The peer's list is still the peer's */
        assert_strlist(peer, cases[i][0]);
    }
}

/* A destination cannot make us believe that we know a feature */
static void test_features_received(void)
{
    static const char *const cases[][2] = {
        { "[]", "" },
        { "[\"nobody-knows\", 1, \"\"]", "" },
        { "[1, {}, \"named-channels\", null]", "named-channels" },
        { "[\"named-channels\", \"named-channels\"]", "named-channels" },
        { "[\"grease-00000000\", \"named-channels\", \"late-error\"]",
          "named-channels" },
        { "[[\"named-channels\"]]", "" },
        { "[{\"named-channels\": true}]", "" },
        { "[\"named-channels\\u0020\"]", "" },
        /* No list, no features; what needs one is checked elsewhere */
        { "\"named-channels\"", "" },
        { "{\"named-channels\": true}", "" },
        { "true", "" },
        { "null", "" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *text = g_strdup_printf("{\"features\": %s}",
                                                cases[i][0]);

        for (int accept = 0; accept < 2; accept++) {
            g_autoptr(HandshakeVerdict) verdict = verdict_parse(text, accept);

            assert_strlist(verdict->features, cases[i][1]);
        }
    }
}

/* What goes out is what was put in, and grease */
static void test_features_sent(void)
{
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    g_autoptr(HandshakeHello) got = NULL;
    g_autofree char *text = NULL;

    hello->purpose = g_strdup("migrate");
    hello->features = handshake_features();
    text = handshake_hello_to_json(hello);
    /* Which remains the sender's */
    assert_strlist(hello->features, "named-channels");
    got = hello_parse(text, NULL);
    drop_grease(&got->features);
    assert_strlist(got->features, "named-channels");
    /* Nobody asks a destination for something that it may do without */
    g_assert_null(got->required);
}

static void test_commit(void)
{
    static const char digest[] =
        "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    g_autofree char *text = handshake_commit_to_json(digest);
    g_autofree char *got =
        handshake_commit_from_json(text, strlen(text), &error_abort);
    QDict *dict = dict_from(text);

    g_assert_cmpstr(got, ==, digest);
    check_members(try_commit, dict, dict, "digest", "");
    qobject_unref(dict);
}

static void test_abort(void)
{
    g_autoptr(HandshakeVerdict) verdict = verdict_new(false);
    g_autofree char *text = handshake_abort_to_json("no\nway",
                                                    &verdict->issues);
    HandshakeIssues issues = { 0 };
    g_autofree char *message =
        handshake_abort_from_json(text, strlen(text), &issues, &error_abort);
    QDict *dict = dict_from(text);

    g_assert_cmpstr(message, ==, "no way");
    assert_verdict_issues(&issues);
    handshake_issues_free(&issues);

    check_members(try_abort, dict, dict, "", "message issues issues-omitted");
    check_members(try_abort, dict, list_first(dict, "issues"), "",
                  issue_members);
    qobject_unref(dict);

    g_free(message);
    message = handshake_abort_from_json("{}", 2, &issues, &error_abort);
    g_assert_nonnull(message);
    g_assert_null(issues.list);
}

static void add_issues(HandshakeIssues *issues, int count, const char *text)
{
    for (int i = 0; i < count; i++) {
        g_autofree char *code = g_strdup_printf("%d", i);

        handshake_issue_add(issues, code, ERROR, text, text, text, "%s", text);
    }
}

static unsigned count_issues(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssueList *l;
    unsigned count = 0;

    for (l = issues->list; l; l = l->next) {
        g_autofree char *code = g_strdup_printf("%d", count++);

        /* The first ones, in their order */
        g_assert_cmpstr(l->value->code, ==, code);
    }
    g_assert_cmpuint(issues->listed, ==, count);
    return count;
}

static void test_issues_many(void)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    g_autoptr(HandshakeVerdict) got = NULL;
    g_autofree char *text = NULL;
    g_autofree char *summary = NULL;

    add_issues(&verdict->issues, 256, "x");
    g_assert_cmpuint(verdict->issues.omitted, ==, 0);
    add_issues(&verdict->issues, 44, "x");
    g_assert_cmpuint(count_issues(&verdict->issues), ==, 256);
    g_assert_cmpuint(verdict->issues.omitted, ==, 44);
    g_assert_cmpuint(verdict->issues.errors, ==, 300);
    g_assert_cmpuint(verdict->issues.warnings, ==, 0);
    summary = handshake_issues_summary(&verdict->issues);
    g_assert_cmpstr(summary, ==, "300 problems: x (0), ...");

    text = handshake_verdict_to_json(verdict);
    got = verdict_parse(text, false);
    g_assert_cmpuint(count_issues(&got->issues), ==, 256);
    g_assert_cmpuint(got->issues.omitted, ==, 44);

    handshake_issues_free(&verdict->issues);
    g_assert_null(verdict->issues.list);
    g_assert_cmpuint(verdict->issues.errors, ==, 0);
    add_issues(&verdict->issues, 2, "x");
    g_assert_cmpuint(count_issues(&verdict->issues), ==, 2);
}

/* A peer may send more than we would */
static void test_issues_many_received(void)
{
    g_autoptr(HandshakeVerdict) got = NULL;
    g_autoptr(GString) text = g_string_new("{\"issues-omitted\": 10,"
                                           " \"issues\": [");

    for (int i = 0; i < 300; i++) {
        g_string_append_printf(text, "%s{\"code\": \"%d\"}", i ? "," : "", i);
    }
    g_string_append(text, "]}");
    got = verdict_parse(text->str, false);
    g_assert_cmpuint(count_issues(&got->issues), ==, 256);
    g_assert_cmpuint(got->issues.omitted, ==, 54);
}

static void add_coded(HandshakeIssues *issues,
                      MigrationHandshakeSeverity severity, int from, int to)
{
    for (int i = from; i < to; i++) {
        g_autofree char *code =
            g_strdup_printf("%s-%d", MigrationHandshakeSeverity_str(severity),
                            i);

        handshake_issue_add(issues, code, severity, NULL, NULL, NULL, "%s",
                            code);
    }
}

/* Looks for @count issues of @severity, in the order in which they came */
static const MigrationHandshakeIssueList *
expect_coded(const MigrationHandshakeIssueList *l,
             MigrationHandshakeSeverity severity, int count)
{
    for (int i = 0; i < count; i++) {
        g_autofree char *code =
            g_strdup_printf("%s-%d", MigrationHandshakeSeverity_str(severity),
                            i);

        g_assert_nonnull(l);
        g_assert_cmpstr(l->value->code, ==, code);
        g_assert_cmpstr(l->value->message, ==, code);
        g_assert_cmpint(l->value->severity, ==, severity);
        l = l->next;
    }
    return l;
}

static void assert_ten_errors_first(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssueList *l;
    unsigned count = 10;

    l = expect_coded(issues->list, ERROR, 10);
    expect_coded(l, WARNING, 1);
    for (; l; l = l->next) {
        g_assert_cmpint(l->value->severity, !=, ERROR);
        count++;
    }
    g_assert_cmpuint(count, ==, 256);
    g_assert_cmpuint(issues->listed, ==, 256);
    g_assert_cmpuint(issues->errors, ==, 10);
}

/* Whatever is left out for want of room, it is not an error */
static void test_issues_errors_first(void)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    HandshakeIssues *issues = &verdict->issues;
    const MigrationHandshakeIssueList *l;
    g_autofree char *summary = NULL;
    g_autofree char *text = NULL;
    g_autoptr(HandshakeVerdict) got = NULL;

    add_coded(issues, WARNING, 0, 1);
    add_coded(issues, ERROR, 0, 2);
    add_coded(issues, INFO, 0, 1);
    l = expect_coded(expect_coded(issues->list, ERROR, 2), WARNING, 1);
    g_assert_null(expect_coded(l, INFO, 1));

    add_coded(issues, WARNING, 1, 300);
    add_coded(issues, ERROR, 2, 10);
    g_assert_cmpuint(issues->errors, ==, 10);
    g_assert_cmpuint(issues->warnings, ==, 300);
    g_assert_cmpuint(issues->omitted, ==, 311 - 256);
    assert_ten_errors_first(issues);
    text = handshake_verdict_to_json(verdict);
    got = verdict_parse(text, false);
    assert_ten_errors_first(&got->issues);
    g_assert_cmpuint(got->issues.omitted, ==, 311 - 256);
    summary = handshake_issues_summary(issues);
    g_assert_cmpstr(summary, ==, "310 problems: error-0 (error-0), ...");

    add_coded(issues, ERROR, 10, 300);
    g_assert_null(expect_coded(issues->list, ERROR, 256));
    g_assert_cmpuint(issues->listed, ==, 256);
    g_assert_cmpuint(issues->errors, ==, 300);
    g_assert_cmpuint(issues->omitted, ==, 601 - 256);

    add_coded(issues, WARNING, 300, 301);
    g_assert_null(expect_coded(issues->list, ERROR, 256));
    g_assert_cmpuint(issues->omitted, ==, 602 - 256);
}

/* As a destination may send them that knows another order, and another bound */
static void test_issues_errors_first_received(void)
{
    g_autoptr(HandshakeVerdict) got = NULL;
    g_autoptr(GString) text = g_string_new("{\"issues\": [");

    for (int i = 0; i < 300; i++) {
        g_string_append_printf(text, "{\"code\": \"%d\"},", i);
    }
    g_string_append(text, "{\"code\": \"last\", \"severity\": \"error\"}]}");
    got = verdict_parse(text->str, false);
    g_assert_cmpuint(got->issues.listed, ==, 256);
    g_assert_cmpuint(got->issues.omitted, ==, 45);
    g_assert_cmpstr(got->issues.list->value->code, ==, "last");
    g_assert_cmpstr(got->issues.list->next->value->code, ==, "0");
}

static void test_issues_omitted_huge(void)
{
    static const char *const numbers[] = {
        "2147483647", "4294967295", "4294967296", "18446744073709551615"
    };

    for (int i = 0; i < ARRAY_SIZE(numbers); i++) {
        g_autofree char *text =
            g_strdup_printf("{\"issues-omitted\": %s}", numbers[i]);
        g_autoptr(HandshakeVerdict) got = verdict_parse(text, false);

        g_assert_cmpuint(got->issues.omitted, >=, INT32_MAX);
    }
}

/* Texts of the greatest length, whose JSON is longer still */
static const char *const long_units[] = {
    "x", "\"", "\\", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xff"
};

static char *long_text(const char *unit)
{
    g_autoptr(GString) text = g_string_new(NULL);

    while (text->len < 4096) {
        g_string_append(text, unit);
    }
    return g_strdup(text->str);
}

static void test_verdict_fits(void)
{
    for (int i = 0; i < ARRAY_SIZE(long_units); i++) {
        for (int accept = 0; accept < 2; accept++) {
            g_autofree char *unit = long_text(long_units[i]);
            g_autoptr(HandshakeVerdict) verdict = verdict_new(accept);
            g_autoptr(HandshakeVerdict) got = NULL;
            g_autofree char *text = NULL;
            unsigned listed;

            handshake_issues_free(&verdict->issues);
            add_issues(&verdict->issues, 300, unit);
            text = handshake_verdict_to_json(verdict);
            g_assert_cmpuint(strlen(text), <=, HANDSHAKE_FRAME_MAX);
            got = verdict_parse(text, accept);
            listed = count_issues(&got->issues);
            g_assert_cmpuint(listed, >=, 1);
            g_assert_cmpuint(listed, <=, 256);
            g_assert_cmpuint(listed + got->issues.omitted, ==, 300);
            /* The configuration does not suffer from it */
            if (accept) {
                assert_strlist(got->capabilities, "return-path multifd");
                g_assert_true(qobject_is_equal(QOBJECT(got->parameters),
                                               QOBJECT(verdict->parameters)));
            }
        }
    }
}

/* The source decides how long these are */
static void test_verdict_fits_declined(void)
{
    g_autoptr(HandshakeVerdict) verdict = verdict_new(true);
    g_autoptr(HandshakeVerdict) got = NULL;
    g_autofree char *text = NULL;

    for (int i = 0; i < 64; i++) {
        MigrationHandshakeDeclined *declined =
            g_new0(MigrationHandshakeDeclined, 1);

        declined->capability = g_strnfill(8000, 'x');
        declined->reason = g_strnfill(8000, 'y');
        QAPI_LIST_PREPEND(verdict->declined, declined);
    }
    text = handshake_verdict_to_json(verdict);
    g_assert_cmpuint(strlen(text), <=, HANDSHAKE_FRAME_MAX);
    got = verdict_parse(text, true);
    assert_strlist(got->capabilities, "return-path multifd");
}

static void test_verdict_fits_not_understood(void)
{
    static const char *const units[] = { "x", "\\u0001", "\\ud83d\\ude00" };

    for (int i = 0; i < ARRAY_SIZE(units); i++) {
        g_autoptr(HandshakeVerdict) verdict = verdict_new(false);
        g_autoptr(HandshakeHello) hello = NULL;
        g_autofree char *text = NULL;
        g_autoptr(GString) json =
            g_string_new("{\"versions\": [], \"purpose\": \"\","
                         " \"required\": [], \"profile\": {\"a\": 0");
        int unit_len = i == 2 ? 4 : 1;

        for (int j = 0; j < 100; j++) {
            g_string_append_printf(json, ", \"%03d", j);
            for (int k = 3; k + unit_len <= 255; k += unit_len) {
                g_string_append(json, units[i]);
            }
            g_string_append(json, "\": 0");
        }
        g_string_append(json, "}}");
        qapi_free_strList(verdict->not_understood);
        verdict->not_understood = NULL;
        hello = hello_parse(json->str, &verdict->not_understood);
        g_assert_cmpuint(strlist_len(verdict->not_understood), ==, 64);
        add_issues(&verdict->issues, 300, "x");
        text = handshake_verdict_to_json(verdict);
        g_assert_cmpuint(strlen(text), <=, HANDSHAKE_FRAME_MAX);
    }
}

static void test_abort_fits(void)
{
    for (int i = 0; i < ARRAY_SIZE(long_units); i++) {
        g_autofree char *unit = long_text(long_units[i]);
        HandshakeIssues issues = { 0 };
        HandshakeIssues got = { 0 };
        g_autofree char *text = NULL;
        g_autofree char *message = NULL;
        unsigned listed;

        add_issues(&issues, 300, unit);
        text = handshake_abort_to_json(unit, &issues);
        g_assert_cmpuint(strlen(text), <=, HANDSHAKE_FRAME_MAX);
        message = handshake_abort_from_json(text, strlen(text), &got,
                                            &error_abort);
        listed = count_issues(&got);
        g_assert_cmpuint(listed, >=, 1);
        g_assert_cmpuint(listed + got.omitted, ==, 300);
        handshake_issues_free(&issues);
        handshake_issues_free(&got);
    }
}

static void assert_presentable(const char *text)
{
    g_assert_nonnull(text);
    g_assert_cmpuint(strlen(text), <=, TEXT_MAX);
    g_assert_true(g_utf8_validate(text, -1, NULL));
    for (const char *p = text; *p; p++) {
        g_assert_false(g_ascii_iscntrl(*p));
    }
}

static void test_text_one_line(void)
{
    static const char text[] = "a\nb\r\nc\td\033[2Je\x7f" "f\x01";
    static const char expected[] = "a b  c d [2Je f ";
    HandshakeIssues issues = { 0 };

    handshake_issue_add(&issues, text, ERROR, text, text, text, "%s", text);
    assert_issue(issues.list->value, expected, ERROR, expected, expected,
                 expected, expected);
    handshake_issues_free(&issues);
}

static void test_text_odd(void)
{
    static const char *const texts[][2] = {
        { "", "" },
        { "plain", "plain" },
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
    for (int i = 0; i < ARRAY_SIZE(long_units) - 1; i++) {
        g_autofree char *rest = long_text(long_units[i]);

        for (int shift = 0; shift < 8; shift++) {
            g_autofree char *text = g_strdup_printf("%.*s%s", shift,
                                                    "abcdefg", rest);
            HandshakeIssues issues = { 0 };
            MigrationHandshakeIssue *issue;

            handshake_issue_add(&issues, text, ERROR, text, text, text, "%s",
                                text);
            issue = issues.list->value;
            assert_presentable(issue->code);
            assert_presentable(issue->subject);
            assert_presentable(issue->source);
            assert_presentable(issue->destination);
            assert_presentable(issue->message);
            /* But no more was cut off than that */
            g_assert_cmpuint(strlen(issue->message), >, TEXT_MAX - 4);
            g_assert_true(g_str_has_prefix(text, issue->message));
            handshake_issues_free(&issues);
        }
    }
}

static void test_text_exact(void)
{
    for (size_t len = TEXT_MAX - 2; len <= TEXT_MAX + 2; len++) {
        g_autofree char *text = g_strnfill(len, 'x');
        HandshakeIssues issues = { 0 };

        handshake_issue_add(&issues, text, ERROR, NULL, NULL, NULL, "%s", text);
        g_assert_cmpuint(strlen(issues.list->value->message), ==,
                         MIN(len, TEXT_MAX));
        g_assert_null(issues.list->value->subject);
        handshake_issues_free(&issues);
    }
}

/* What a peer sends is no better */
static void test_text_received(void)
{
    g_autofree char *text = long_text("\xe2\x82\xac\n");
    QDict *issue = qdict_new();
    QDict *declined = qdict_new();
    QDict *peer = qdict_new();
    QList *list = qlist_new();
    QDict *dict = qdict_new();
    g_autofree char *json = NULL;
    g_autofree char *message = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    HandshakeIssues issues = { 0 };
    MigrationHandshakeIssue *got;

    qdict_put_str(issue, "code", text);
    qdict_put_str(issue, "subject", text);
    qdict_put_str(issue, "source", text);
    qdict_put_str(issue, "destination", text);
    qdict_put_str(issue, "message", text);
    qlist_append(list, issue);
    qdict_put(dict, "issues", list);
    qdict_put_str(declined, "capability", text);
    qdict_put_str(declined, "reason", text);
    list = qlist_new();
    qlist_append(list, declined);
    qdict_put(dict, "declined", list);
    qdict_put_str(peer, "qemu-version", text);
    qdict_put_str(peer, "package", text);
    qdict_put_str(peer, "arch", text);
    qdict_put_str(peer, "machine", text);
    qdict_put(dict, "peer", peer);
    qdict_put_str(dict, "message", text);
    json = text_from(dict);
    qobject_unref(dict);

    verdict = verdict_parse(json, true);
    assert_presentable(verdict->message);
    assert_presentable(verdict->declined->value->capability);
    assert_presentable(verdict->declined->value->reason);
    assert_presentable(verdict->peer->qemu_version);
    assert_presentable(verdict->peer->package);
    assert_presentable(verdict->peer->arch);
    assert_presentable(verdict->peer->machine);
    got = verdict->issues.list->value;
    assert_presentable(got->code);
    assert_presentable(got->subject);
    assert_presentable(got->source);
    assert_presentable(got->destination);
    assert_presentable(got->message);

    message = handshake_abort_from_json(json, strlen(json), &issues,
                                        &error_abort);
    assert_presentable(message);
    assert_presentable(issues.list->value->message);
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
    handshake_issue_add(&issues, "w", WARNING, NULL, NULL, NULL, "a warning");
    assert_summary(&issues, "1 problem: a warning (w)");
    handshake_issue_add(&issues, "i", INFO, NULL, NULL, NULL, "a note");
    assert_summary(&issues, "1 problem: a warning (w)");
    handshake_issue_add(&issues, "e", ERROR, NULL, NULL, NULL, "an error");
    assert_summary(&issues, "2 problems: an error (e), ...");
    handshake_issue_add(&issues, "f", ERROR, NULL, NULL, NULL, "another");
    assert_summary(&issues, "3 problems: an error (e), ...");
    handshake_issues_free(&issues);

    /* No problem at all, but it is all that is known */
    handshake_issue_add(&issues, "i", INFO, NULL, NULL, NULL, "a note");
    assert_summary(&issues, "a note (i)");
    handshake_issues_free(&issues);
}

/* A HELLO whose profile has one member more */
static char *hello_with(const char *member, const char *value)
{
    return g_strdup_printf("{\"versions\": [1], \"purpose\": \"migrate\","
                           " \"required\": [], \"profile\": {\"%s\": %s}}",
                           member, value);
}

static HandshakeHello *parse_with(const char *member, const char *value,
                                  strList **unknown)
{
    g_autofree char *text = hello_with(member, value);

    return hello_parse(text, unknown);
}

static void assert_bad(const char *member, const char *value,
                       const char *expected)
{
    g_autofree char *text = hello_with(member, value);
    g_autoptr(Error) err = NULL;
    g_autoptr(HandshakeHello) hello =
        handshake_hello_from_json(text, strlen(text), NULL, &err);

    g_assert_null(hello);
    if (!strstr(error_get_pretty(err), expected)) {
        g_error("expected '%s' in '%s'", expected, error_get_pretty(err));
    }
    /* Whose mistake it is */
    g_assert_nonnull(strstr(error_get_pretty(err), member));
}

/* "name/instance/version" of each, and a "?" behind one that is conditional */
static void assert_sections(const HandshakeProfile *profile,
                            const char *expected)
{
    g_autoptr(GString) text = g_string_new(NULL);

    g_assert_nonnull(profile->sections);
    for (guint i = 0; i < profile->sections->len; i++) {
        const HandshakeSection *s = g_ptr_array_index(profile->sections, i);

        g_string_append_printf(text, "%s%s/%" PRIu32 "/%" PRIu32 "%s",
                               i ? " " : "", s->name, s->instance, s->version,
                               s->conditional ? "?" : "");
        /* These are never told */
        g_assert_false(s->idle);
        g_assert_cmpuint(s->minimum, ==, 0);
    }
    g_assert_cmpstr(text->str, ==, expected);
}

/* Round trip, without those that are not sent */
static void test_sections(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autofree char *text = handshake_hello_to_json(hello);
    g_autoptr(HandshakeHello) got = hello_parse(text, NULL);

    assert_sections(got->profile, "ram/0/4 cpu/0/12 cpu/1/12 cpu/2/12 "
                    "cpu/4294967295/4294967295 pcspk/0/1?");
}

/* The items of a list in the profile of a HELLO, without the grease */
static char *sent_items(const HandshakeHello *hello, const char *list)
{
    g_autofree char *text = handshake_hello_to_json(hello);
    QDict *dict = dict_from(text);
    QList *items = qdict_get_qlist(qdict_get_qdict(dict, "profile"), list);
    g_autoptr(GString) json = g_string_new(NULL);
    QObject *item;

    while ((item = qlist_pop(items))) {
        if (!count_grease(qobject_to(QDict, item))) {
            g_autoptr(GString) one = qobject_to_json(item);

            g_string_append_printf(json, "%s%s", json->len ? "\n" : "",
                                   one->str);
        }
        qobject_unref(item);
    }
    qobject_unref(dict);
    return g_strdup(json->str);
}

static void assert_items(const HandshakeHello *hello, const char *list,
                         const char *const *expected)
{
    g_autofree char *sent = sent_items(hello, list);
    g_auto(GStrv) lines = g_strsplit(sent, "\n", 0);
    int i;

    for (i = 0; expected[i]; i++) {
        QDict *want = dict_from(expected[i]);
        QDict *item;

        g_assert_nonnull(lines[i]);
        item = dict_from(lines[i]);
        if (!qobject_is_equal(QOBJECT(want), QOBJECT(item))) {
            g_error("%s instead of %s", lines[i], expected[i]);
        }
        qobject_unref(want);
        qobject_unref(item);
    }
    g_assert_null(lines[i]);
}

/* CPUs are many, and alike */
static void test_sections_grouped(void)
{
    static const char *const expected[] = {
        "{\"name\": \"timer\", \"version\": 2}",
        "{\"name\": \"cpu\", \"version\": 12, \"instances\": [0, 1, 2]}",
        "{\"name\": \"apic\", \"version\": 3, \"instances\": [4294967295, 0]}",
        "{\"name\": \"dma\", \"version\": 1, \"instances\": [1]}",
        "{\"name\": \"dma\", \"version\": 2, \"instances\": [2]}",
        "{\"name\": \"dma\", \"version\": 2, \"conditional\": true,"
        " \"instances\": [3, 4]}",
        "{\"name\": \"dma\", \"version\": 2}",
        NULL
    };
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    HandshakeProfile *profile = hello->profile;
    g_autoptr(HandshakeHello) got = NULL;
    g_autofree char *text = NULL;

    hello->purpose = g_strdup("migrate");
    add_section(profile, "timer", 0, 2);
    add_section(profile, "cpu", 0, 12);
    add_section(profile, "apic", UINT32_MAX, 3);
    add_section(profile, "cpu", 1, 12);
    add_section(profile, "apic", 7, 3)->idle = true;
    add_section(profile, "cpu", 2, 12);
    add_section(profile, "apic", 0, 3);
    add_section(profile, "dma", 1, 1);
    add_section(profile, "dma", 2, 2);
    add_section(profile, "dma", 3, 2)->conditional = true;
    add_section(profile, "dma", 4, 2)->conditional = true;
    add_section(profile, "dma", 0, 2);
    assert_items(hello, "sections", expected);

    text = handshake_hello_to_json(hello);
    got = hello_parse(text, NULL);
    assert_sections(got->profile,
                    "timer/0/2 cpu/0/12 cpu/1/12 cpu/2/12 "
                    "apic/4294967295/3 apic/0/3 "
                    "dma/1/1 dma/2/2 dma/3/2? dma/4/2? dma/0/2");
}

/* What a short item means, and what is not meant for this version */
static void test_sections_items(void)
{
    g_autoptr(HandshakeHello) hello =
        parse_with("sections",
                   "[{\"name\": \"a\", \"version\": 0}, {\"version\": 7},"
                   " {\"name\": \"b\", \"version\": 4294967295,"
                   "  \"conditional\": false,"
                   "  \"instances\": [4294967295, 0, \"1\", null, -1, [], 0]},"
                   " 5, \"c\", null, [], {}, true,"
                   " {\"name\": \"\", \"version\": 0, \"instances\": [3]},"
                   " {\"name\": \"d\", \"version\": 1, \"instances\": []},"
                   " {\"name\": \"a\", \"version\": 0,"
                   "  \"conditional\": true}]", NULL);

    assert_sections(hello->profile, "a/0/0 b/4294967295/4294967295 "
                    "b/0/4294967295 b/0/4294967295 /3/0 d/0/1 a/0/0?");
    g_assert_null(hello->profile->ram_blocks);

    assert_bad("sections", "[{\"name\": \"a\"}]",
               "section 'a': member 'version' is missing");
}

static void test_ram_blocks(void)
{
    static const char *const expected[] = {
        "{\"name\": \"pc.ram\", \"size\": 1073741824, \"page-size\": 4096}",
        "{\"name\": \"/objects/file\", \"size\": 18446744073709551615,"
        " \"max-size\": 18446744073709551614, \"page-size\": 2097152,"
        " \"resizeable\": true, \"shared-file\": true,"
        " \"address\": 18446744073709551615}",
        NULL
    };
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autofree char *text = handshake_hello_to_json(hello);
    g_autoptr(HandshakeHello) got = hello_parse(text, NULL);
    GPtrArray *blocks = got->profile->ram_blocks;
    const HandshakeRAMBlock *block;

    assert_items(hello, "ram-blocks", expected);
    g_assert_cmpuint(blocks->len, ==, 2);
    block = g_ptr_array_index(blocks, 0);
    g_assert_cmpstr(block->name, ==, "pc.ram");
    g_assert_cmpuint(block->size, ==, 1 << 30);
    g_assert_cmpuint(block->max_size, ==, 1 << 30);
    g_assert_cmpuint(block->page_size, ==, 4096);
    g_assert_false(block->resizeable);
    g_assert_false(block->shared_file);
    g_assert_false(block->has_address);
    block = g_ptr_array_index(blocks, 1);
    g_assert_cmpstr(block->name, ==, "/objects/file");
    g_assert_cmpuint(block->size, ==, UINT64_MAX);
    g_assert_cmpuint(block->max_size, ==, UINT64_MAX - 1);
    g_assert_cmpuint(block->page_size, ==, 2 << 20);
    g_assert_true(block->resizeable);
    g_assert_true(block->shared_file);
    g_assert_true(block->has_address);
    g_assert_cmpuint(block->address, ==, UINT64_MAX);
}

static void test_ram_blocks_items(void)
{
    g_autoptr(HandshakeHello) hello =
        parse_with("ram-blocks",
                   "[{\"size\": 7}, 5, null, [], {}, \"pc.bios\","
                   " {\"name\": \"pc.ram\", \"size\": 77},"
                   " {\"name\": \"\", \"size\": 0, \"address\": 0,"
                   "  \"max-size\": 8, \"conditional\": true}]",
                   NULL);
    GPtrArray *blocks = hello->profile->ram_blocks;
    const HandshakeRAMBlock *block;

    g_assert_null(hello->profile->sections);
    g_assert_cmpuint(blocks->len, ==, 2);
    block = g_ptr_array_index(blocks, 0);
    g_assert_cmpstr(block->name, ==, "pc.ram");
    g_assert_cmpuint(block->size, ==, 77);
    g_assert_cmpuint(block->max_size, ==, 77);
    g_assert_cmpuint(block->page_size, ==, 0);
    g_assert_false(block->has_address);
    g_assert_false(block->conditional);
    block = g_ptr_array_index(blocks, 1);
    g_assert_true(block->conditional);
    g_assert_cmpuint(block->size, ==, 0);
    g_assert_cmpuint(block->max_size, ==, 8);
    g_assert_true(block->has_address);
    g_assert_cmpuint(block->address, ==, 0);

    assert_bad("ram-blocks", "[{\"name\": \"pc.ram\"}]",
               "RAM block 'pc.ram': member 'size' is missing");
}

/* A list of nothing that this version knows is an empty one: it is absent */
static void test_parts_ignored(void)
{
    static const char *const lists[] = { "sections", "ram-blocks" };
    static const char *const items[] = {
        "[]", "[{}]", "[{\"grease-5e1f0a32\": 215}]", "[5, null, []]",
    };

    for (int i = 0; i < ARRAY_SIZE(lists); i++) {
        for (int j = 0; j < ARRAY_SIZE(items); j++) {
            g_autoptr(HandshakeHello) hello = parse_with(lists[i], items[j],
                                                         NULL);

            g_assert_null(hello->profile->sections);
            g_assert_null(hello->profile->ram_blocks);
        }
    }
}

/* Whether a frame has grease makes no difference */
static void test_parts_none(void)
{
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    g_autoptr(HandshakeHello) got = NULL;
    g_autofree char *text = NULL;

    hello->purpose = g_strdup(HANDSHAKE_PURPOSE_MIGRATE);
    hello->profile->sections = handshake_sections_new();
    hello->profile->ram_blocks = handshake_ram_blocks_new();
    text = handshake_hello_to_json(hello);
    got = hello_parse(text, NULL);
    g_assert_null(got->profile->sections);
    g_assert_null(got->profile->ram_blocks);
}

/* A later version says more of every part: that is told once, not each time */
static void test_parts_not_understood(void)
{
    strList *unknown = NULL;
    g_autoptr(HandshakeHello) hello =
        hello_parse("{\"versions\": [], \"purpose\": \"\", \"required\": [],"
                    " \"profile\": {\"sections\": ["
                    "  {\"name\": \"a\", \"version\": 1, \"instances\": [1],"
                    "   \"conditional\": true, \"schema\": {\"x\": []}},"
                    "  {\"name\": \"b\", \"version\": 0, \"schema\": null,"
                    "   \"size\": 1},"
                    "  {\"template\": 1}, {\"template\": 2}, [\"what\"]],"
                    " \"ram-blocks\": ["
                    "  {\"name\": \"a\", \"size\": 1, \"max-size\": 1,"
                    "   \"page-size\": 1, \"resizeable\": true,"
                    "   \"shared-file\": true, \"address\": 1,"
                    "   \"schema\": 1},"
                    "  {\"name\": \"b\", \"size\": 1, \"schema\": 2}]}}",
                    &unknown);

    g_assert_cmpuint(strlist_len(unknown), ==, 4);
    assert_contains(unknown, "profile.sections.schema");
    assert_contains(unknown, "profile.sections.size");
    assert_contains(unknown, "profile.sections.template");
    assert_contains(unknown, "profile.ram-blocks.schema");
    assert_sections(hello->profile, "a/1/1? b/0/0");
    g_assert_cmpuint(hello->profile->ram_blocks->len, ==, 2);
    qapi_free_strList(unknown);
}

/* What no stream could carry, and what would take a destination's memory */
static void test_parts_bounds(void)
{
    static const char *const lists[] = { "sections", "ram-blocks" };
    const char *expected = "'name' has more than 255 bytes";
    g_autofree char *longest = g_strnfill(255, 'n');

    for (int i = 0; i < ARRAY_SIZE(lists); i++) {
        g_autofree char *longer = g_strconcat(longest, "n", NULL);
        g_autofree char *good = NULL;
        g_autofree char *bad = NULL;
        g_autoptr(HandshakeHello) hello = NULL;

        good = g_strdup_printf("[{\"name\": \"%s\", \"version\": 1,"
                               "  \"size\": 1}]", longest);
        bad = g_strdup_printf("[{\"name\": \"%s\"}]", longer);
        hello = parse_with(lists[i], good, NULL);
        assert_bad(lists[i], bad, expected);
        /* Bytes count, as in the stream */
        g_free(bad);
        memcpy(longer + 254, "\xc3\xa4", 2);
        bad = g_strdup_printf("[{\"name\": \"%s\"}]", longer);
        assert_bad(lists[i], bad, expected);
    }

    assert_bad("sections", "[{\"name\": \"a\", \"version\": 4294967296}]",
               "'version' is too large");
    assert_bad("sections",
               "[{\"name\": \"a\", \"version\": 18446744073709551615}]",
               "'version' is too large");
    assert_bad("sections",
               "[{\"name\": \"a\", \"version\": 1,"
               "  \"instances\": [1, 4294967296]}]",
               "instance of section 'a' is too large");
    /* Without a name it is something of a later version, whatever it has */
    for (int i = 0; i < 2; i++) {
        g_autofree char *text =
            hello_with(lists[i], "[{\"version\": \"1\", \"size\": {},"
                       "  \"instances\": 4294967296}]");
        g_autoptr(HandshakeHello) hello = hello_parse(text, NULL);

        g_assert_nonnull(hello);
    }
}

/* A few bytes of text for each of many sections */
static char *many_instances(unsigned count)
{
    g_autoptr(GString) text = g_string_new("[{\"name\": \"a\","
                                           "  \"version\": 0,"
                                           "  \"instances\": [0");

    while (--count) {
        g_string_append(text, ",0");
    }
    g_string_append(text, "]}]");
    return g_strdup(text->str);
}

static char *many_blocks(unsigned count)
{
    g_autoptr(GString) text = g_string_new("[");

    for (unsigned i = 0; i < count; i++) {
        g_string_append_printf(text, "%s{\"name\": \"%x\", \"size\": 0}",
                               i ? "," : "", i);
    }
    g_string_append(text, "]");
    return g_strdup(text->str);
}

static void test_parts_many(void)
{
    g_autofree char *instances = many_instances(HANDSHAKE_SECTIONS_MAX);
    g_autofree char *more_instances =
        many_instances(HANDSHAKE_SECTIONS_MAX + 1);
    g_autofree char *blocks = many_blocks(HANDSHAKE_RAM_BLOCKS_MAX);
    g_autofree char *more_blocks = many_blocks(HANDSHAKE_RAM_BLOCKS_MAX + 1);
    g_autoptr(HandshakeHello) hello = NULL;

    hello = parse_with("sections", instances, NULL);
    g_assert_cmpuint(hello->profile->sections->len, ==,
                     HANDSHAKE_SECTIONS_MAX);
    handshake_hello_free(g_steal_pointer(&hello));
    assert_bad("sections", more_instances, "more than 16384 sections");

    hello = parse_with("ram-blocks", blocks, NULL);
    g_assert_cmpuint(hello->profile->ram_blocks->len, ==,
                     HANDSHAKE_RAM_BLOCKS_MAX);
    assert_bad("ram-blocks", more_blocks, "more than 2048 RAM blocks");
}

static void add_devices(HandshakeProfile *profile, unsigned count,
                        const char *suffix)
{
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *name =
            g_strdup_printf("0000:%02x:%02x.%x/%s", i / 256, i / 8 % 32,
                            i % 8, suffix);

        add_section(profile, name, 0, 11);
    }
}

/* What a peer makes of the HELLO of @hello; it must fit into a frame */
static HandshakeHello *tell(const HandshakeHello *hello, size_t *len)
{
    g_autofree char *text = handshake_hello_to_json(hello);

    *len = strlen(text);
    g_assert_cmpuint(*len, <=, HANDSHAKE_HELLO_MAX);
    return hello_parse(text, NULL);
}

/*
 * However large a machine is, its HELLO is one that can be read.  If that takes
 * leaving out the lists, nobody compares them.
 */
static void test_parts_fit(void)
{
    g_autofree char *suffix = g_strnfill(240, 's');
    size_t len;

    for (int i = 0; i < 6; i++) {
        g_autoptr(HandshakeHello) hello = hello_new();
        g_autoptr(HandshakeHello) got = NULL;
        HandshakeProfile *profile = hello->profile;
        bool sections = true, blocks = true;

        switch (i) {
        case 0:
            /* As many items as there may be; four sections are there */
            add_devices(profile, 6076, "e1000");
            for (int j = 0; j < HANDSHAKE_RAM_BLOCKS_MAX - 2; j++) {
                add_block(profile, "pc.ram", 4096);
            }
            break;
        case 1:
            add_devices(profile, 6077, "e1000");
            sections = false;
            break;
        case 2:
            for (int j = 0; j < HANDSHAKE_RAM_BLOCKS_MAX - 1; j++) {
                add_block(profile, "pc.ram", 4096);
            }
            sections = blocks = false;
            break;
        case 3:
            for (int j = 0; j < HANDSHAKE_SECTIONS_MAX; j++) {
                add_section(profile, "cpu", j + 3, 12);
            }
            sections = blocks = false;
            break;
        case 4:
            for (int j = 0; j < HANDSHAKE_SECTIONS_MAX - 7; j++) {
                add_section(profile, "cpu", j + 3, 12);
            }
            break;
        case 5:
            /* Too many bytes */
            add_devices(profile, 2500, suffix);
            sections = blocks = false;
            break;
        }
        got = tell(hello, &len);
        g_assert_true(!!got->profile->sections == sections);
        g_assert_true(!!got->profile->ram_blocks == blocks);
        /* The rest is none the worse for it */
        g_assert_cmpstr(got->profile->machine, ==, profile->machine);
        g_assert_cmpuint(strlist_len(got->profile->unmigratable), ==, 2);
        if (blocks) {
            g_assert_cmpuint(got->profile->ram_blocks->len, ==,
                             profile->ram_blocks->len);
        }
        if (sections) {
            /* One of them is idle */
            g_assert_cmpuint(got->profile->sections->len, ==,
                             profile->sections->len - 1);
        }
    }
}

/* Devices cost what their names take, and a few bytes more */
static void test_parts_length(void)
{
    static const unsigned counts[] = { 0, 500, 1000, 2000, 4000 };
    size_t lens[ARRAY_SIZE(counts)];
    double each;

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        g_autoptr(HandshakeHello) hello = hello_new();
        g_autoptr(HandshakeHello) got = NULL;

        add_devices(hello->profile, counts[i], "virtio-net");
        got = tell(hello, &lens[i]);
        g_assert_cmpuint(got->profile->sections->len, ==,
                         hello->profile->sections->len - 1);
        g_test_message("%u devices: %zu bytes", counts[i], lens[i]);
    }
    g_assert_cmpuint(lens[1], <, HANDSHAKE_HELLO_MAX / 10);
    each = (double)(lens[1] - lens[0]) / counts[1];
    for (int i = 2; i < ARRAY_SIZE(counts); i++) {
        double per = (double)(lens[i] - lens[0]) / counts[i];

        /* Grease may have one digit more or less */
        g_assert_cmpfloat(per, <, each + 0.5);
        g_assert_cmpfloat(per, >, each - 0.5);
    }
}

/* Every message, cut at every byte: an error, whatever the peer does */
static void test_cut(void)
{
    g_autoptr(HandshakeHello) hello = hello_new();
    g_autoptr(HandshakeVerdict) accept = verdict_new(true);
    g_autoptr(HandshakeVerdict) reject = verdict_new(false);
    char *texts[] = {
        handshake_hello_to_json(hello), handshake_verdict_to_json(accept),
        handshake_verdict_to_json(reject), handshake_commit_to_json("00"),
        handshake_abort_to_json("why", &reject->issues),
    };
    TryFunc tries[] = {
        try_hello, try_accept, try_reject, try_commit, try_abort
    };

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        for (size_t len = strlen(texts[i]); len-- > 0;) {
            Error *err = NULL;

            texts[i][len] = '\0';
            g_assert_false(tries[i](texts[i], &err));
            g_assert_nonnull(err);
            error_free(err);
        }
        g_free(texts[i]);
    }
}

static void test_free(void)
{
    HandshakeIssues issues = { 0 };

    handshake_profile_free(NULL);
    handshake_hello_free(NULL);
    handshake_verdict_free(NULL);
    handshake_issues_free(&issues);
    handshake_profile_free(handshake_profile_new());
    handshake_hello_free(handshake_hello_new());
    handshake_verdict_free(handshake_verdict_new());
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/migration/handshake/message/hello", test_hello);
    g_test_add_func("/migration/handshake/message/profile", test_profile);
    g_test_add_func("/migration/handshake/message/profile/declined",
                    test_declined_lenient);
    g_test_add_func("/migration/handshake/message/profile/obstacles",
                    test_obstacles);
    g_test_add_func("/migration/handshake/message/hello/minimal",
                    test_hello_minimal);
    g_test_add_func("/migration/handshake/message/hello/members",
                    test_hello_members);
    g_test_add_func("/migration/handshake/message/hello/items",
                    test_hello_items);
    g_test_add_func("/migration/handshake/message/strict-items",
                    test_strict_items);
    g_test_add_func("/migration/handshake/message/features", test_features);
    g_test_add_func("/migration/handshake/message/features/common",
                    test_features_common);
    g_test_add_func("/migration/handshake/message/features/received",
                    test_features_received);
    g_test_add_func("/migration/handshake/message/features/sent",
                    test_features_sent);
    g_test_add_func("/migration/handshake/message/bad-json",
                    test_hello_bad_json);
    g_test_add_func("/migration/handshake/message/not-understood",
                    test_not_understood);
    g_test_add_func("/migration/handshake/message/not-understood/bounded",
                    test_not_understood_bounded);
    g_test_add_func("/migration/handshake/message/grease/name",
                    test_grease_name);
    g_test_add_func("/migration/handshake/message/grease/number",
                    test_grease_number);
    g_test_add_func("/migration/handshake/message/grease/sent",
                    test_grease_sent);
    g_test_add_func("/migration/handshake/message/accept", test_accept);
    g_test_add_func("/migration/handshake/message/reject", test_reject);
    g_test_add_func("/migration/handshake/message/verdict/minimal",
                    test_verdict_minimal);
    g_test_add_func("/migration/handshake/message/verdict/members",
                    test_verdict_members);
    g_test_add_func("/migration/handshake/message/verdict/items",
                    test_verdict_items);
    g_test_add_func("/migration/handshake/message/severity", test_severity);
    g_test_add_func("/migration/handshake/message/commit", test_commit);
    g_test_add_func("/migration/handshake/message/abort", test_abort);
    g_test_add_func("/migration/handshake/message/issues/many",
                    test_issues_many);
    g_test_add_func("/migration/handshake/message/issues/many-received",
                    test_issues_many_received);
    g_test_add_func("/migration/handshake/message/issues/errors-first",
                    test_issues_errors_first);
    g_test_add_func("/migration/handshake/message/issues/errors-first-received",
                    test_issues_errors_first_received);
    g_test_add_func("/migration/handshake/message/issues/omitted-huge",
                    test_issues_omitted_huge);
    g_test_add_func("/migration/handshake/message/fits/verdict",
                    test_verdict_fits);
    g_test_add_func("/migration/handshake/message/fits/declined",
                    test_verdict_fits_declined);
    g_test_add_func("/migration/handshake/message/fits/not-understood",
                    test_verdict_fits_not_understood);
    g_test_add_func("/migration/handshake/message/fits/abort",
                    test_abort_fits);
    g_test_add_func("/migration/handshake/message/text/one-line",
                    test_text_one_line);
    g_test_add_func("/migration/handshake/message/text/odd", test_text_odd);
    g_test_add_func("/migration/handshake/message/text/cut", test_text_cut);
    g_test_add_func("/migration/handshake/message/text/exact",
                    test_text_exact);
    g_test_add_func("/migration/handshake/message/text/received",
                    test_text_received);
    g_test_add_func("/migration/handshake/message/summary", test_summary);
    g_test_add_func("/migration/handshake/message/sections", test_sections);
    g_test_add_func("/migration/handshake/message/sections/grouped",
                    test_sections_grouped);
    g_test_add_func("/migration/handshake/message/sections/items",
                    test_sections_items);
    g_test_add_func("/migration/handshake/message/ram-blocks",
                    test_ram_blocks);
    g_test_add_func("/migration/handshake/message/ram-blocks/items",
                    test_ram_blocks_items);
    g_test_add_func("/migration/handshake/message/parts/ignored",
                    test_parts_ignored);
    g_test_add_func("/migration/handshake/message/parts/none",
                    test_parts_none);
    g_test_add_func("/migration/handshake/message/parts/not-understood",
                    test_parts_not_understood);
    g_test_add_func("/migration/handshake/message/parts/bounds",
                    test_parts_bounds);
    g_test_add_func("/migration/handshake/message/parts/many",
                    test_parts_many);
    g_test_add_func("/migration/handshake/message/parts/fit", test_parts_fit);
    g_test_add_func("/migration/handshake/message/parts/length",
                    test_parts_length);
    g_test_add_func("/migration/handshake/message/cut", test_cut);
    g_test_add_func("/migration/handshake/message/free", test_free);

    return g_test_run();
}
