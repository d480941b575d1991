/*
 * Migration handshake: the messages, from and to JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/guest-random.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "handshake-json.h"
#include "handshake-message.h"
#include "handshake-wire.h"

/* Bytes of a text that is passed on to people; what a peer says may be huge */
#define TEXT_MAX                1024
/* So that a peer's HANDSHAKE_JSON_OBJECTS_MAX is enough for all of a HELLO */
#define SECTION_ITEMS_MAX       (HANDSHAKE_JSON_OBJECTS_MAX / 4 * 3 - 64)
/* How many names of ignored members are reported back */
#define NOT_UNDERSTOOD_MAX      64

HandshakeProfile *handshake_profile_new(void)
{
    return g_new0(HandshakeProfile, 1);
}

void handshake_profile_free(HandshakeProfile *profile)
{
    if (!profile) {
        return;
    }
    g_free(profile->qemu_version);
    g_free(profile->package);
    g_free(profile->arch);
    g_free(profile->machine);
    g_free(profile->uuid);
    g_free(profile->name);
    qapi_free_strList(profile->capabilities);
    qapi_free_strList(profile->required);
    qobject_unref(profile->parameters);
    qobject_unref(profile->stream);
    g_clear_pointer(&profile->sections, g_ptr_array_unref);
    g_clear_pointer(&profile->ram_blocks, g_ptr_array_unref);
    qapi_free_strList(profile->unmigratable);
    qapi_free_strList(profile->blockers);
    g_free(profile);
}

MigrationHandshakePeer *handshake_profile_peer(const HandshakeProfile *profile)
{
    MigrationHandshakePeer *peer = g_new0(MigrationHandshakePeer, 1);

    peer->qemu_version = handshake_text(profile->qemu_version);
    peer->package = handshake_text(profile->package);
    peer->machine = handshake_text(profile->machine);
    peer->arch = handshake_text(profile->arch);
    return peer;
}

static void section_free(gpointer data)
{
    HandshakeSection *section = data;

    g_free(section->name);
    g_free(section);
}

static void ram_block_free(gpointer data)
{
    HandshakeRAMBlock *block = data;

    g_free(block->name);
    g_free(block);
}

GPtrArray *handshake_sections_new(void)
{
    return g_ptr_array_new_with_free_func(section_free);
}

GPtrArray *handshake_ram_blocks_new(void)
{
    return g_ptr_array_new_with_free_func(ram_block_free);
}

HandshakeSection *handshake_sections_add(GPtrArray *sections, const char *name)
{
    HandshakeSection *section = g_new0(HandshakeSection, 1);

    section->name = g_strdup(name);
    g_ptr_array_add(sections, section);
    return section;
}

HandshakeRAMBlock *handshake_ram_blocks_add(GPtrArray *blocks,
                                            const char *name)
{
    HandshakeRAMBlock *block = g_new0(HandshakeRAMBlock, 1);

    block->name = g_strdup(name);
    g_ptr_array_add(blocks, block);
    return block;
}

HandshakeHello *handshake_hello_new(void)
{
    HandshakeHello *hello = g_new0(HandshakeHello, 1);

    hello->profile = handshake_profile_new();
    return hello;
}

void handshake_hello_free(HandshakeHello *hello)
{
    if (!hello) {
        return;
    }
    qapi_free_uint32List(hello->versions);
    g_free(hello->purpose);
    qapi_free_strList(hello->required);
    qapi_free_strList(hello->features);
    qapi_free_strList(hello->optional);
    qapi_free_MigrationHandshakeDeclinedList(hello->declined);
    g_clear_pointer(&hello->combinations, g_ptr_array_unref);
    handshake_profile_free(hello->profile);
    g_free(hello);
}

static void combination_free(gpointer data)
{
    HandshakeCombination *combination = data;

    g_free(combination->capability);
    g_free(combination->with);
    g_free(combination->reason);
    g_free(combination);
}

void handshake_combination_add(HandshakeHello *hello, const char *capability,
                               const char *with, const char *reason)
{
    HandshakeCombination *combination = g_new0(HandshakeCombination, 1);

    combination->capability = g_strdup(capability);
    combination->with = g_strdup(with);
    combination->reason = handshake_text(reason);
    if (!hello->combinations) {
        hello->combinations = g_ptr_array_new_with_free_func(combination_free);
    }
    g_ptr_array_add(hello->combinations, combination);
}

HandshakeVerdict *handshake_verdict_new(void)
{
    return g_new0(HandshakeVerdict, 1);
}

void handshake_verdict_free(HandshakeVerdict *verdict)
{
    if (!verdict) {
        return;
    }
    g_free(verdict->message);
    qapi_free_strList(verdict->features);
    qapi_free_strList(verdict->not_understood);
    qapi_free_MigrationHandshakePeer(verdict->peer);
    qapi_free_strList(verdict->capabilities);
    qapi_free_MigrationHandshakeDeclinedList(verdict->declined);
    qobject_unref(verdict->parameters);
    handshake_issues_free(&verdict->issues);
    g_free(verdict);
}

void handshake_declined_add(MigrationHandshakeDeclinedList **list,
                            const char *capability, const char *reason)
{
    MigrationHandshakeDeclined *declined =
        g_new0(MigrationHandshakeDeclined, 1);

    declined->capability = handshake_text(capability);
    declined->reason = handshake_text(reason);
    while (*list) {
        list = &(*list)->next;
    }
    QAPI_LIST_APPEND(list, declined);
}

/* NULL-terminated */
static const char *const features[] = {
    HANDSHAKE_FEATURE_NAMED_CHANNELS,
    NULL
};

bool handshake_feature_known(const char *name)
{
    return g_strv_contains(features, name);
}

strList *handshake_features(void)
{
    strList *all = NULL;
    strList **tail = &all;

    for (int i = 0; features[i]; i++) {
        QAPI_LIST_APPEND(tail, g_strdup(features[i]));
    }
    return all;
}

strList *handshake_features_common(const strList *peer)
{
    strList *common = NULL;
    strList **tail = &common;

    for (int i = 0; features[i]; i++) {
        if (handshake_strlist_contains(peer, features[i])) {
            QAPI_LIST_APPEND(tail, g_strdup(features[i]));
        }
    }
    return common;
}

static uint32_t grease_random(void)
{
    uint32_t value;

    qemu_guest_getrandom_nofail(&value, sizeof(value));
    return value;
}

char *handshake_grease_name(void)
{
    return g_strdup_printf("grease-%08" PRIx32, grease_random());
}

uint16_t handshake_grease_number(void)
{
    return 0x0a0a | (grease_random() & 0xf) * 0x1010;
}

void handshake_verdict_forget_agreement(HandshakeVerdict *verdict)
{
    g_clear_pointer(&verdict->capabilities, qapi_free_strList);
    g_clear_pointer(&verdict->declined,
                    qapi_free_MigrationHandshakeDeclinedList);
    qobject_unref(verdict->parameters);
    verdict->parameters = NULL;
}

/* Whether it could move a terminal's cursor, or turn the text around */
static bool disturbs(gunichar c)
{
    switch (g_unichar_type(c)) {
    case G_UNICODE_CONTROL:
    case G_UNICODE_FORMAT:
    case G_UNICODE_LINE_SEPARATOR:
    case G_UNICODE_PARAGRAPH_SEPARATOR:
        return true;
    default:
        return false;
    }
}

char *handshake_text(const char *text)
{
    const char *end;
    GString *copy;

    if (!text) {
        return NULL;
    }

    /* The longest prefix that does not end within a character */
    g_utf8_validate(text, strnlen(text, TEXT_MAX), &end);
    copy = g_string_sized_new(end - text);
    for (const char *p = text; p < end; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);

        g_string_append_unichar(copy, disturbs(c) ? ' ' : c);
    }
    return g_string_free(copy, FALSE);
}

static void issues_drop_last(HandshakeIssues *issues)
{
    MigrationHandshakeIssueList **last = &issues->list;

    while ((*last)->next) {
        last = &(*last)->next;
    }
    g_clear_pointer(last, qapi_free_MigrationHandshakeIssueList);
    issues->tail = last;
    issues->listed--;
    issues->omitted++;
}

/*
 * Counts one more issue.  Returns whether it is to be listed: an error is, in
 * the place of something that is none if need be.
 */
static bool issues_make_room(HandshakeIssues *issues,
                             MigrationHandshakeSeverity severity)
{
    bool error = severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR;

    issues->errors += error;
    issues->warnings += severity == MIGRATION_HANDSHAKE_SEVERITY_WARNING;

    if (issues->listed < HANDSHAKE_ISSUES_MAX) {
        return true;
    }
    /* All errors before this one are listed, and something else that can go */
    if (error && issues->errors <= HANDSHAKE_ISSUES_MAX) {
        issues_drop_last(issues);
        return true;
    }
    issues->omitted++;
    return false;
}

/* Takes @issue, for which there is room */
static void issues_insert(HandshakeIssues *issues,
                          MigrationHandshakeIssue *issue)
{
    bool error = issue->severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR;
    MigrationHandshakeIssueList **end = issues->tail ?: &issues->list;
    MigrationHandshakeIssueList **at =
        error ? issues->errors_tail ?: &issues->list : end;

    QAPI_LIST_PREPEND(*at, issue);
    if (at == end) {
        issues->tail = &(*at)->next;
    }
    if (error) {
        issues->errors_tail = &(*at)->next;
    }
    issues->listed++;
}

void handshake_issue_add(HandshakeIssues *issues, const char *code,
                         MigrationHandshakeSeverity severity,
                         const char *subject, const char *source,
                         const char *destination, const char *fmt, ...)
{
    MigrationHandshakeIssue *issue;
    g_autofree char *message = NULL;
    va_list ap;

    if (!issues_make_room(issues, severity)) {
        /* A peer may make it a great many: no text is made for nobody */
        return;
    }
    va_start(ap, fmt);
    message = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    issue = g_new0(MigrationHandshakeIssue, 1);
    issue->severity = severity;
    issue->code = handshake_text(code);
    issue->subject = handshake_text(subject);
    issue->source = handshake_text(source);
    issue->destination = handshake_text(destination);
    issue->message = handshake_text(message);
    issues_insert(issues, issue);
}

void handshake_issues_free(HandshakeIssues *issues)
{
    qapi_free_MigrationHandshakeIssueList(issues->list);
    *issues = (HandshakeIssues) { 0 };
}

char *handshake_issues_summary(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssue *gravest = NULL;
    const MigrationHandshakeIssueList *l;
    unsigned count = issues->errors + issues->warnings;

    for (l = issues->list; l; l = l->next) {
        /* The enum goes from bad to harmless */
        if (!gravest || l->value->severity < gravest->severity) {
            gravest = l->value;
        }
    }
    if (!gravest) {
        return g_strdup("no reason was given");
    }
    if (!count) {
        return g_strdup_printf("%s (%s)", gravest->message, gravest->code);
    }
    return g_strdup_printf("%u problem%s: %s (%s)%s", count,
                           count == 1 ? "" : "s", gravest->message,
                           gravest->code, count > 1 ? ", ..." : "");
}

static void put_str(QDict *dict, const char *name, const char *value)
{
    if (value) {
        qdict_put_str(dict, name, value);
    }
}

static void put_dict(QDict *dict, const char *name, QDict *value)
{
    if (value) {
        qdict_put(dict, name, qobject_ref(value));
    }
}

/* Every object may gain members; so every object gets one that nobody knows */
static void put_grease(QDict *dict)
{
    g_autofree char *name = handshake_grease_name();

    qdict_put_int(dict, name, grease_random());
}

static void put_strlist_grease(QList *list)
{
    g_autofree char *name = handshake_grease_name();

    qlist_append_str(list, name);
}

static char *to_json(const QDict *dict)
{
    g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));

    return g_strdup(json->str);
}

static void put_uint(QDict *dict, const char *name, uint64_t value)
{
    qdict_put(dict, name, qnum_from_uint(value));
}

static QDict *section_to_dict(const HandshakeSection *section)
{
    QDict *dict = qdict_new();

    qdict_put_str(dict, "name", section->name);
    put_uint(dict, "version", section->version);
    if (section->conditional) {
        qdict_put_bool(dict, "conditional", true);
    }
    return dict;
}

static void section_put_instance(QDict *item, uint32_t instance)
{
    if (!qdict_haskey(item, "instances")) {
        qdict_put(item, "instances", qlist_new());
    }
    qlist_append_int(qdict_get_qlist(item, "instances"), instance);
}

/*
 * Sections that differ in their instance alone, like those of CPUs, are one
 * item.  It lists the instances unless there is only the usual one, 0.
 */
static QList *sections_to_list(const GPtrArray *sections)
{
    g_autoptr(GHashTable) items = g_hash_table_new(g_str_hash, g_str_equal);
    QList *list = qlist_new();

    for (guint i = 0; i < sections->len; i++) {
        const HandshakeSection *section = g_ptr_array_index(sections, i);
        QDict *item = g_hash_table_lookup(items, section->name);

        if (section->idle) {
            continue;
        }
        if (item && qdict_get_int(item, "version") == section->version &&
            qdict_haskey(item, "conditional") == section->conditional) {
            if (!qdict_haskey(item, "instances")) {
                section_put_instance(item, 0);
            }
            section_put_instance(item, section->instance);
            continue;
        }
        item = section_to_dict(section);
        if (section->instance != 0) {
            section_put_instance(item, section->instance);
        }
        qlist_append(list, item);
        g_hash_table_replace(items, section->name, item);
    }
    return list;
}

static QDict *ram_block_to_dict(const HandshakeRAMBlock *block)
{
    QDict *dict = qdict_new();

    qdict_put_str(dict, "name", block->name);
    put_uint(dict, "size", block->size);
    if (block->max_size != block->size) {
        put_uint(dict, "max-size", block->max_size);
    }
    if (block->page_size) {
        put_uint(dict, "page-size", block->page_size);
    }
    if (block->resizeable) {
        qdict_put_bool(dict, "resizeable", true);
    }
    if (block->conditional) {
        qdict_put_bool(dict, "conditional", true);
    }
    if (block->shared_file) {
        qdict_put_bool(dict, "shared-file", true);
    }
    if (block->has_address) {
        put_uint(dict, "address", block->address);
    }
    return dict;
}

/*
 * An item that nobody knows, since there is no room for one in each item; NULL
 * is a list that is left out
 */
static void put_list_grease(QList *list)
{
    QDict *item;

    if (list) {
        item = qdict_new();
        put_grease(item);
        qlist_append(list, item);
    }
}

static QDict *profile_to_dict(const HandshakeProfile *profile, bool with_parts)
{
    QDict *dict = qdict_new();

    put_str(dict, "qemu-version", profile->qemu_version);
    put_str(dict, "package", profile->package);
    put_str(dict, "arch", profile->arch);
    put_str(dict, "machine", profile->machine);
    if (profile->page_size) {
        put_uint(dict, "page-size", profile->page_size);
    }
    if (profile->host_page_size) {
        put_uint(dict, "host-page-size", profile->host_page_size);
    }
    put_str(dict, "uuid", profile->uuid);
    put_str(dict, "name", profile->name);
    handshake_json_put_strlist(dict, "capabilities", profile->capabilities);
    handshake_json_put_strlist(dict, "required-capabilities",
                               profile->required);
    put_dict(dict, "parameters", profile->parameters);
    put_dict(dict, "stream", profile->stream);
    if (profile->sections && with_parts) {
        QList *list = sections_to_list(profile->sections);

        if (qlist_size(list) <= SECTION_ITEMS_MAX) {
            qdict_put(dict, "sections", list);
        } else {
            qobject_unref(list);
        }
    }
    if (profile->ram_blocks && with_parts) {
        QList *list = qlist_new();

        for (guint i = 0; i < profile->ram_blocks->len; i++) {
            qlist_append(list, ram_block_to_dict(
                g_ptr_array_index(profile->ram_blocks, i)));
        }
        qdict_put(dict, "ram-blocks", list);
    }
    if (profile->unmigratable) {
        handshake_json_put_strlist(dict, "unmigratable",
                                   profile->unmigratable);
    }
    if (profile->blockers) {
        handshake_json_put_strlist(dict, "blockers", profile->blockers);
    }
    return dict;
}

static void put_declined(QDict *dict,
                         const MigrationHandshakeDeclinedList *declined,
                         unsigned max)
{
    QList *list = qlist_new();

    for (; declined && max; declined = declined->next, max--) {
        QDict *item = qdict_new();

        qdict_put_str(item, "capability", declined->value->capability);
        qdict_put_str(item, "reason", declined->value->reason);
        qlist_append(list, item);
    }
    qdict_put(dict, "declined", list);
}

static QDict *hello_to_dict(const HandshakeHello *hello, bool with_parts)
{
    QDict *dict = qdict_new();
    QList *versions = qlist_new();
    const uint32List *v;

    for (v = hello->versions; v; v = v->next) {
        qlist_append_int(versions, v->value);
    }
    qdict_put(dict, "versions", versions);
    qdict_put_str(dict, "purpose", hello->purpose);
    handshake_json_put_strlist(dict, "required", hello->required);
    handshake_json_put_strlist(dict, "features", hello->features);
    handshake_json_put_strlist(dict, "optional-capabilities", hello->optional);
    if (hello->warnings_as_errors) {
        qdict_put_bool(dict, "warnings-as-errors", true);
    }
    qdict_put(dict, "profile", profile_to_dict(hello->profile, with_parts));
    return dict;
}

/* Wherever a later version may add something that this one does not know */
static void grease_hello(QDict *dict)
{
    QDict *profile = qdict_get_qdict(dict, "profile");

    put_grease(dict);
    put_grease(profile);
    put_list_grease(qdict_get_qlist(profile, "sections"));
    put_list_grease(qdict_get_qlist(profile, "ram-blocks"));
    put_strlist_grease(qdict_get_qlist(dict, "features"));
    qlist_append_int(qdict_get_qlist(dict, "versions"),
                     handshake_grease_number());
    /* None in optional-capabilities: what is declined is shown to people */
}

static bool fits(const GPtrArray *array, unsigned max)
{
    return !array || array->len <= max;
}

/*
 * A machine with too many parts to fit into a frame does not list them.  The
 * text is returned, and *@dict is what it was made of.
 */
static char *hello_to_frame(const HandshakeHello *hello, bool grease,
                            QDict **dict)
{
    const HandshakeProfile *profile = hello->profile;
    bool with_parts = fits(profile->sections, HANDSHAKE_SECTIONS_MAX) &&
                      fits(profile->ram_blocks, HANDSHAKE_RAM_BLOCKS_MAX);

    for (;;) {
        g_autofree char *json = NULL;

        *dict = hello_to_dict(hello, with_parts);
        if (grease) {
            grease_hello(*dict);
        }
        json = to_json(*dict);
        if (!with_parts || strlen(json) <= HANDSHAKE_HELLO_MAX) {
            return g_steal_pointer(&json);
        }
        qobject_unref(*dict);
        with_parts = false;
    }
}

char *handshake_hello_to_json(const HandshakeHello *hello)
{
    g_autoptr(QDict) dict = NULL;

    return hello_to_frame(hello, true, &dict);
}

static void put_combinations(QDict *dict, const GPtrArray *combinations)
{
    QList *list = qlist_new();

    for (guint i = 0; combinations && i < combinations->len; i++) {
        const HandshakeCombination *from = g_ptr_array_index(combinations, i);
        QDict *item = qdict_new();

        qdict_put_str(item, "capability", from->capability);
        qdict_put_str(item, "with", from->with);
        put_str(item, "reason", from->reason);
        qlist_append(list, item);
    }
    qdict_put(dict, "combinations", list);
}

QDict *handshake_hello_to_profile(const HandshakeHello *hello)
{
    QDict *dict = NULL;

    g_free(hello_to_frame(hello, false, &dict));
    put_declined(dict, hello->declined, UINT_MAX);
    put_combinations(dict, hello->combinations);
    return dict;
}

static QDict *peer_to_dict(const MigrationHandshakePeer *peer)
{
    QDict *dict = qdict_new();

    put_str(dict, "qemu-version", peer->qemu_version);
    put_str(dict, "package", peer->package);
    put_str(dict, "arch", peer->arch);
    put_str(dict, "machine", peer->machine);
    put_grease(dict);
    return dict;
}

static QDict *issue_to_dict(const MigrationHandshakeIssue *issue)
{
    QDict *dict = qdict_new();

    qdict_put_str(dict, "code", issue->code);
    qdict_put_str(dict, "severity",
                  MigrationHandshakeSeverity_str(issue->severity));
    put_str(dict, "subject", issue->subject);
    put_str(dict, "source", issue->source);
    put_str(dict, "destination", issue->destination);
    qdict_put_str(dict, "message", issue->message);
    return dict;
}

/* At most @max issues; what is left out is counted in "issues-omitted" */
static void put_issues(QDict *dict, const HandshakeIssues *issues,
                       unsigned max)
{
    const MigrationHandshakeIssueList *l;
    QList *list = qlist_new();
    unsigned omitted = issues->omitted;

    for (l = issues->list; l; l = l->next) {
        if (max) {
            qlist_append(list, issue_to_dict(l->value));
            max--;
        } else {
            omitted++;
        }
    }
    qdict_put(dict, "issues", list);
    if (omitted) {
        qdict_put_int(dict, "issues-omitted", omitted);
    }
}

/* @max bounds each of the lists whose length the peer has a say in */
static char *verdict_to_json_max(const HandshakeVerdict *verdict, unsigned max)
{
    g_autoptr(QDict) dict = qdict_new();

    qdict_put_int(dict, "version", verdict->version);
    put_str(dict, "message", verdict->message);
    handshake_json_put_strlist(dict, "features", verdict->features);
    put_strlist_grease(qdict_get_qlist(dict, "features"));
    handshake_json_put_strlist(dict, "not-understood",
                               verdict->not_understood);
    if (verdict->peer) {
        qdict_put(dict, "peer", peer_to_dict(verdict->peer));
    }
    if (verdict->accept) {
        handshake_json_put_strlist(dict, "capabilities",
                                   verdict->capabilities);
        put_declined(dict, verdict->declined, max);
        put_dict(dict, "parameters", verdict->parameters);
    }
    put_issues(dict, &verdict->issues, max);
    put_grease(dict);
    return to_json(dict);
}

char *handshake_verdict_to_json(const HandshakeVerdict *verdict)
{
    unsigned max = HANDSHAKE_ISSUES_MAX;
    char *json = verdict_to_json_max(verdict, max);

    while (max && strlen(json) > HANDSHAKE_FRAME_MAX) {
        g_free(json);
        max /= 2;
        json = verdict_to_json_max(verdict, max);
    }
    return json;
}

char *handshake_commit_to_json(const char *digest)
{
    g_autoptr(QDict) dict = qdict_new();

    qdict_put_str(dict, "digest", digest);
    put_grease(dict);
    return to_json(dict);
}

static char *abort_to_json_max(const char *message,
                               const HandshakeIssues *issues, unsigned max)
{
    g_autoptr(QDict) dict = qdict_new();
    g_autofree char *text = handshake_text(message);

    qdict_put_str(dict, "message", text);
    put_issues(dict, issues, max);
    put_grease(dict);
    return to_json(dict);
}

char *handshake_abort_to_json(const char *message,
                              const HandshakeIssues *issues)
{
    unsigned max = HANDSHAKE_ISSUES_MAX;
    char *json = abort_to_json_max(message, issues, max);

    while (max && strlen(json) > HANDSHAKE_FRAME_MAX) {
        g_free(json);
        max /= 2;
        json = abort_to_json_max(message, issues, max);
    }
    return json;
}

/* Tell the names in @dict that are not in the NULL-terminated @known */
static void note_unknown(const QDict *dict, const char *prefix,
                         const char *const *known, strList **not_understood)
{
    const QDictEntry *entry;
    unsigned count = 0;

    if (!not_understood) {
        return;
    }
    for (strList *l = *not_understood; l; l = l->next) {
        count++;
    }
    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        g_autofree char *name = g_strconcat(prefix, qdict_entry_key(entry),
                                            NULL);

        if (!g_strv_contains(known, qdict_entry_key(entry)) &&
            !handshake_strlist_contains(*not_understood, name) &&
            count++ < NOT_UNDERSTOOD_MAX) {
            QAPI_LIST_PREPEND(*not_understood, g_steal_pointer(&name));
        }
    }
}

/*
 * The name of an item of a list of sections or RAM blocks, in *@name.  An item
 * without one is something of a later version: then *@name is NULL.
 */
static bool get_part_name(const QDict *item, char **name, Error **errp)
{
    if (!handshake_json_get_str(item, "name", name, errp)) {
        return false;
    }
    if (*name && strlen(*name) > HANDSHAKE_STREAM_NAME_MAX) {
        error_setg(errp, "member 'name' has more than %d bytes",
                   HANDSHAKE_STREAM_NAME_MAX);
        return false;
    }
    return true;
}

static bool get_uint32(const QDict *dict, const char *name, uint32_t *value,
                       Error **errp)
{
    uint64_t val = *value;

    if (!handshake_json_get_uint(dict, name, &val, errp)) {
        return false;
    }
    if (val > UINT32_MAX) {
        error_setg(errp, "member '%s' is too large", name);
        return false;
    }
    *value = val;
    return true;
}

static bool section_add_instance(GPtrArray *sections,
                                 const HandshakeSection *like,
                                 uint64_t instance, Error **errp)
{
    HandshakeSection *section;

    if (instance > UINT32_MAX) {
        error_setg(errp, "an instance of section '%s' is too large",
                   like->name);
        return false;
    }
    if (sections->len == HANDSHAKE_SECTIONS_MAX) {
        error_setg(errp, "more than %d sections", HANDSHAKE_SECTIONS_MAX);
        return false;
    }
    section = handshake_sections_add(sections, like->name);
    section->instance = instance;
    section->version = like->version;
    section->conditional = like->conditional;
    return true;
}

/* One item of the list: one section, or more that differ in the instance */
static bool get_section(const QDict *item, GPtrArray *sections,
                        strList **not_understood, Error **errp)
{
    static const char *const known[] = {
        "name", "version", "conditional", "instances", NULL
    };
    g_autofree char *name = NULL;
    HandshakeSection like = { 0 };
    QList *instances = NULL;
    const QListEntry *entry;

    note_unknown(item, "profile.sections.", known, not_understood);
    if (!get_part_name(item, &name, errp)) {
        return false;
    }
    if (!name) {
        return true;
    }
    if (!get_uint32(item, "version", &like.version, errp) ||
        !handshake_json_get_bool(item, "conditional",
                                 &like.conditional, errp) ||
        !handshake_json_get_list(item, "instances", &instances, errp)) {
        return false;
    }
    if (!qdict_haskey(item, "version")) {
        error_setg(errp, "section '%s': member 'version' is missing", name);
        return false;
    }
    like.name = name;
    if (!instances || qlist_empty(instances)) {
        return section_add_instance(sections, &like, 0, errp);
    }
    QLIST_FOREACH_ENTRY(instances, entry) {
        QNum *num = qobject_to(QNum, qlist_entry_obj(entry));
        uint64_t instance;

        if (num && qnum_get_try_uint(num, &instance) &&
            !section_add_instance(sections, &like, instance, errp)) {
            return false;
        }
    }
    return true;
}

static bool get_ram_block(const QDict *item, GPtrArray *blocks,
                          strList **not_understood, Error **errp)
{
    static const char *const known[] = {
        "name", "size", "max-size", "page-size", "resizeable", "conditional",
        "shared-file", "address", NULL
    };
    g_autofree char *name = NULL;
    HandshakeRAMBlock *block;

    note_unknown(item, "profile.ram-blocks.", known, not_understood);
    if (!get_part_name(item, &name, errp)) {
        return false;
    }
    if (!name) {
        return true;
    }
    if (!qdict_haskey(item, "size")) {
        error_setg(errp, "RAM block '%s': member 'size' is missing", name);
        return false;
    }
    if (blocks->len == HANDSHAKE_RAM_BLOCKS_MAX) {
        error_setg(errp, "more than %d RAM blocks", HANDSHAKE_RAM_BLOCKS_MAX);
        return false;
    }
    block = handshake_ram_blocks_add(blocks, name);
    if (!handshake_json_get_uint(item, "size", &block->size, errp)) {
        return false;
    }
    block->max_size = block->size;
    block->has_address = qdict_haskey(item, "address");
    return handshake_json_get_uint(item, "max-size",
                                   &block->max_size, errp) &&
           handshake_json_get_uint(item, "page-size",
                                   &block->page_size, errp) &&
           handshake_json_get_bool(item, "resizeable",
                                   &block->resizeable, errp) &&
           handshake_json_get_bool(item, "conditional",
                                   &block->conditional, errp) &&
           handshake_json_get_bool(item, "shared-file",
                                   &block->shared_file, errp) &&
           handshake_json_get_uint(item, "address", &block->address, errp);
}

/* Reads a list of objects, if it is there, into a new array in *@array */
static bool get_parts(const QDict *dict, const char *member,
                      GPtrArray *(*new_array)(void),
                      bool (*get)(const QDict *, GPtrArray *, strList **,
                                  Error **),
                      GPtrArray **array, strList **not_understood,
                      Error **errp)
{
    ERRP_GUARD();
    QList *list = NULL;
    const QListEntry *entry;

    if (!handshake_json_get_list(dict, member, &list, errp)) {
        return false;
    }
    if (!list || qlist_empty(list)) {
        return true;
    }
    *array = new_array();
    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (item && !get(item, *array, not_understood, errp)) {
            error_prepend(errp, "member '%s': ", member);
            return false;
        }
    }
    if (!(*array)->len) {
        /* What is ignored, like grease, makes no difference */
        g_clear_pointer(array, g_ptr_array_unref);
    }
    return true;
}

/*
 * A list of what keeps the guest where it is.  What a later version says in
 * another way keeps it there as well.
 */
static bool get_obstacles(const QDict *dict, const char *member,
                          strList **obstacles, Error **errp)
{
    QList *list = NULL;
    const QListEntry *entry;
    strList **tail = obstacles;

    if (!handshake_json_get_list(dict, member, &list, errp)) {
        return false;
    }
    for (entry = list ? qlist_first(list) : NULL; entry;
         entry = qlist_next(entry)) {
        QString *text = qobject_to(QString, qlist_entry_obj(entry));

        QAPI_LIST_APPEND(tail, g_strdup(text ? qstring_get_str(text)
                                             : "not understood here"));
    }
    return true;
}

static bool profile_from_dict(const QDict *dict, HandshakeProfile *profile,
                              strList **not_understood, Error **errp)
{
    static const char *const known[] = {
        "qemu-version", "package", "arch", "machine", "page-size",
        "host-page-size", "uuid", "name", "capabilities",
        "required-capabilities", "parameters", "stream", "sections",
        "ram-blocks", "unmigratable", "blockers", NULL
    };
    QDict *parameters = NULL;
    QDict *stream = NULL;

    if (!handshake_json_get_str(dict, "qemu-version",
                                &profile->qemu_version, errp) ||
        !handshake_json_get_str(dict, "package", &profile->package, errp) ||
        !handshake_json_get_str(dict, "arch", &profile->arch, errp) ||
        !handshake_json_get_str(dict, "machine", &profile->machine, errp) ||
        !handshake_json_get_uint(dict, "page-size",
                                 &profile->page_size, errp) ||
        !handshake_json_get_uint(dict, "host-page-size",
                                 &profile->host_page_size, errp) ||
        !handshake_json_get_str(dict, "uuid", &profile->uuid, errp) ||
        !handshake_json_get_str(dict, "name", &profile->name, errp) ||
        !handshake_json_get_strlist(dict, "capabilities", false,
                                    &profile->capabilities, errp) ||
        !handshake_json_get_strlist(dict, "required-capabilities", true,
                                    &profile->required, errp) ||
        !handshake_json_get_dict(dict, "parameters", &parameters, errp) ||
        !handshake_json_get_dict(dict, "stream", &stream, errp) ||
        !get_parts(dict, "sections", handshake_sections_new, get_section,
                   &profile->sections, not_understood, errp) ||
        !get_parts(dict, "ram-blocks", handshake_ram_blocks_new,
                   get_ram_block, &profile->ram_blocks, not_understood,
                   errp) ||
        !get_obstacles(dict, "unmigratable", &profile->unmigratable, errp) ||
        !get_obstacles(dict, "blockers", &profile->blockers, errp)) {
        return false;
    }
    profile->parameters = qobject_ref(parameters);
    profile->stream = qobject_ref(stream);
    note_unknown(dict, "profile.", known, not_understood);
    return true;
}

static bool get_versions(const QDict *dict, uint32List **versions,
                         Error **errp)
{
    uint32List **tail = versions;
    QList *list = NULL;
    const QListEntry *entry;

    if (!handshake_json_get_list(dict, "versions", &list, errp)) {
        return false;
    }
    QLIST_FOREACH_ENTRY(list, entry) {
        QNum *num = qobject_to(QNum, qlist_entry_obj(entry));
        uint64_t val;

        if (num && qnum_get_try_uint(num, &val) && val <= UINT32_MAX) {
            QAPI_LIST_APPEND(tail, val);
        }
    }
    return true;
}

/*
 * The text of a member, bounded and on one line; @fallback if there is none.
 * What only people read is never worth an error.
 */
static char *text_member(const QDict *dict, const char *name,
                         const char *fallback)
{
    g_autofree char *text = NULL;

    handshake_json_get_str(dict, name, &text, NULL);
    return text ? handshake_text(text) : g_strdup(fallback);
}

/* Of a list that is no worse for being absent or something else */
static const QListEntry *first_item(const QDict *dict, const char *name)
{
    QList *list = NULL;

    handshake_json_get_list(dict, name, &list, NULL);
    return list ? qlist_first(list) : NULL;
}

static void get_declined(const QDict *dict,
                         MigrationHandshakeDeclinedList **declined)
{
    MigrationHandshakeDeclinedList **tail = declined;
    const QListEntry *entry;

    for (entry = first_item(dict, "declined"); entry;
         entry = qlist_next(entry)) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (item) {
            MigrationHandshakeDeclined *value =
                g_new0(MigrationHandshakeDeclined, 1);

            value->capability = text_member(item, "capability", "unknown");
            value->reason = text_member(item, "reason",
                                        "no reason was given");
            QAPI_LIST_APPEND(tail, value);
        }
    }
}

static HandshakeHello *hello_from_dict(const QDict *dict,
                                       strList **not_understood, Error **errp)
{
    static const char *const known[] = {
        "versions", "purpose", "required", "features",
        "optional-capabilities", "warnings-as-errors", "profile", NULL
    };
    static const char *const core[] = { "versions", "purpose", "required" };
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    QDict *profile = NULL;

    for (int i = 0; i < ARRAY_SIZE(core); i++) {
        if (!qdict_haskey(dict, core[i])) {
            error_setg(errp, "member '%s' is missing", core[i]);
            return NULL;
        }
    }
    if (!get_versions(dict, &hello->versions, errp) ||
        !handshake_json_get_str(dict, "purpose", &hello->purpose, errp) ||
        !handshake_json_get_strlist(dict, "required", true,
                                    &hello->required, errp) ||
        !handshake_json_get_strlist(dict, "features", false,
                                    &hello->features, errp) ||
        !handshake_json_get_strlist(dict, "optional-capabilities", false,
                                    &hello->optional, errp) ||
        !handshake_json_get_bool(dict, "warnings-as-errors",
                                 &hello->warnings_as_errors, errp) ||
        !handshake_json_get_dict(dict, "profile", &profile, errp)) {
        return NULL;
    }
    note_unknown(dict, "", known, not_understood);
    if (profile && !profile_from_dict(profile, hello->profile,
                                      not_understood, errp)) {
        return NULL;
    }
    return g_steal_pointer(&hello);
}

HandshakeHello *handshake_hello_from_json(const char *text, size_t len,
                                          strList **not_understood,
                                          Error **errp)
{
    g_autoptr(QDict) dict = handshake_json_parse(text, len, errp);

    return dict ? hello_from_dict(dict, not_understood, errp) : NULL;
}

static void get_combinations(const QDict *dict, HandshakeHello *hello)
{
    const QListEntry *entry;

    for (entry = first_item(dict, "combinations"); entry;
         entry = qlist_next(entry)) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (item) {
            g_autofree char *capability = text_member(item, "capability", "");
            g_autofree char *with = text_member(item, "with", "");
            g_autofree char *reason = text_member(item, "reason", NULL);

            handshake_combination_add(hello, capability, with, reason);
        }
    }
}

HandshakeHello *handshake_hello_from_profile(const char *text, size_t len,
                                             Error **errp)
{
    g_autoptr(QDict) dict = handshake_json_parse(text, len, errp);
    HandshakeHello *hello = dict ? hello_from_dict(dict, NULL, errp) : NULL;

    if (hello) {
        get_declined(dict, &hello->declined);
        get_combinations(dict, hello);
    }
    return hello;
}

static MigrationHandshakePeer *get_peer(const QDict *dict)
{
    MigrationHandshakePeer *peer = g_new0(MigrationHandshakePeer, 1);
    QDict *from = NULL;

    handshake_json_get_dict(dict, "peer", &from, NULL);
    if (from) {
        peer->qemu_version = text_member(from, "qemu-version", NULL);
        peer->package = text_member(from, "package", NULL);
        peer->arch = text_member(from, "arch", NULL);
        peer->machine = text_member(from, "machine", NULL);
    }
    return peer;
}

static void get_issue(const QDict *dict, HandshakeIssues *issues)
{
    g_autofree char *name = text_member(dict, "severity", "");
    MigrationHandshakeSeverity severity =
        qapi_enum_parse(&MigrationHandshakeSeverity_lookup, name,
                        MIGRATION_HANDSHAKE_SEVERITY_WARNING, NULL);
    MigrationHandshakeIssue *issue;

    if (!issues_make_room(issues, severity)) {
        return;
    }
    issue = g_new0(MigrationHandshakeIssue, 1);
    issue->severity = severity;
    issue->code = text_member(dict, "code", "unknown");
    issue->subject = text_member(dict, "subject", NULL);
    issue->source = text_member(dict, "source", NULL);
    issue->destination = text_member(dict, "destination", NULL);
    issue->message = text_member(dict, "message", "no details were given");
    issues_insert(issues, issue);
}

static void get_issues(const QDict *dict, HandshakeIssues *issues)
{
    const QListEntry *entry;
    uint64_t more = 0;

    handshake_json_get_uint(dict, "issues-omitted", &more, NULL);
    for (entry = first_item(dict, "issues"); entry;
         entry = qlist_next(entry)) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (item) {
            get_issue(item, issues);
        }
    }
    issues->omitted += MIN(more, INT32_MAX);
}

/* What an ACCEPT says must be understood to the letter */
static bool get_effective(const QDict *dict, HandshakeVerdict *verdict,
                          Error **errp)
{
    QDict *parameters = NULL;

    if (!handshake_json_get_strlist(dict, "capabilities", true,
                                    &verdict->capabilities, errp) ||
        !handshake_json_get_dict(dict, "parameters", &parameters, errp)) {
        return false;
    }
    verdict->parameters = qobject_ref(parameters);
    get_declined(dict, &verdict->declined);
    return true;
}

HandshakeVerdict *handshake_verdict_from_json(const char *text, size_t len,
                                              bool accept, Error **errp)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    g_autoptr(QDict) dict = handshake_json_parse(text, len, errp);
    g_autoptr(strList) features = NULL;
    uint64_t version = 0;

    if (!dict) {
        return NULL;
    }
    /* A refusal must come through whatever else a later version makes of it */
    verdict->accept = accept;
    if (accept && (!handshake_json_get_uint(dict, "version", &version, errp) ||
                   !get_effective(dict, verdict, errp))) {
        return NULL;
    }
    if (!accept) {
        handshake_json_get_uint(dict, "version", &version, NULL);
    }
    verdict->version = MIN(version, UINT32_MAX);
    verdict->message = text_member(dict, "message", NULL);
    handshake_json_get_strlist(dict, "features", false, &features, NULL);
    verdict->features = handshake_features_common(features);
    handshake_json_get_strlist(dict, "not-understood", false,
                               &verdict->not_understood, NULL);
    verdict->peer = get_peer(dict);
    get_issues(dict, &verdict->issues);
    return g_steal_pointer(&verdict);
}

char *handshake_commit_from_json(const char *text, size_t len, Error **errp)
{
    g_autoptr(QDict) dict = handshake_json_parse(text, len, errp);
    g_autofree char *digest = NULL;

    if (!dict || !handshake_json_get_str(dict, "digest", &digest, errp)) {
        return NULL;
    }
    if (!digest) {
        error_setg(errp, "member 'digest' is missing");
    }
    return g_steal_pointer(&digest);
}

char *handshake_abort_from_json(const char *text, size_t len,
                                HandshakeIssues *issues, Error **errp)
{
    g_autoptr(QDict) dict = handshake_json_parse(text, len, errp);

    if (!dict) {
        return NULL;
    }
    get_issues(dict, issues);
    return text_member(dict, "message", "no reason was given");
}
