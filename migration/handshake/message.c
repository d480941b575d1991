/*
 * Migration handshake: the messages, from and to JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qapi/util.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "message.h"
#include "promises.h"
#include "trace.h"

/* Bytes of a text that is passed on to people; what a peer says may be huge */
#define TEXT_MAX            1024

/* How deep objects and arrays may be nested, the outermost counted */
#define JSON_DEPTH_MAX      16
/* Bytes in a member's name, as it stands between its quotes */
#define JSON_NAME_MAX       255
/*
 * Members of one object, and objects in all: a QDict takes 4 KiB even if it is
 * empty, and looks names up in lists that a peer can make one long one of
 */
#define JSON_MEMBERS_MAX    256
#define JSON_OBJECTS_MAX    8192

/* A name in a migration stream: its length is a byte there */
#define STREAM_NAME_MAX     255
/* Of a machine; each instance of a section counts */
#define SECTIONS_MAX        16384
#define RAM_BLOCKS_MAX      2048

/* How many names of ignored members are reported back */
#define NOT_UNDERSTOOD_MAX  64

/* Appended to the message of an issue that is ignored */
#define IGNORED             " (ignored)"

static const char *const features[] = {
    HANDSHAKE_FEATURE_NAMED_CHANNELS,
    HANDSHAKE_FEATURE_LATE_ERROR,
    HANDSHAKE_FEATURE_ONE_OWNER,
    HANDSHAKE_FEATURE_RESUME_HEADER,
};

/*
 * Codes that somebody who knows better can have ignored: what they are about
 * is one machine and the other, and not whether the two understand each other
 */
static const char *const ignorable[] = {
    "arch", "bitmap-missing", "cpu", "device", "disk", "ram-block-address",
    "ram-block-extra", "ram-block-missing", "ram-block-page-size",
    "ram-block-size", "section-extra", "section-missing", "section-schema",
    "section-version", "uuid", NULL
};

static const QEnumLookup severity_lookup = {
    .array = (const char *const[]) {
        [HANDSHAKE_ERROR] = "error",
        [HANDSHAKE_WARNING] = "warning",
        [HANDSHAKE_INFO] = "info",
    },
    .size = HANDSHAKE_INFO + 1,
};

HandshakeVerdict *handshake_verdict_new(bool accept)
{
    HandshakeVerdict *verdict = g_new0(HandshakeVerdict, 1);

    verdict->accept = accept;
    verdict->message = g_new0(MigrationHandshakeVerdict, 1);
    return verdict;
}

void handshake_verdict_free(HandshakeVerdict *verdict)
{
    if (verdict) {
        qapi_free_MigrationHandshakeVerdict(verdict->message);
        handshake_issues_free(&verdict->issues);
        g_free(verdict);
    }
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

static char *text_cut(const char *text, size_t max)
{
    const char *end;
    GString *copy;

    /* The longest prefix that does not end within a character */
    g_utf8_validate(text, strnlen(text, max), &end);
    copy = g_string_sized_new(end - text);
    for (const char *p = text; p < end; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);

        g_string_append_unichar(copy, disturbs(c) ? ' ' : c);
    }
    return g_string_free(copy, FALSE);
}

char *handshake_text(const char *text)
{
    return text ? text_cut(text, TEXT_MAX) : NULL;
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

bool handshake_has_name(const strList *list, const char *name)
{
    for (; list; list = list->next) {
        if (!strcmp(list->value, name)) {
            return true;
        }
    }
    return false;
}

strList *handshake_features(void)
{
    strList *known = NULL;
    strList **tail = &known;

    for (int i = 0; i < ARRAY_SIZE(features); i++) {
        QAPI_LIST_APPEND(tail, g_strdup(features[i]));
    }
    return known;
}

strList *handshake_features_common(const strList *peer)
{
    strList *common = NULL;
    strList **tail = &common;

    for (int i = 0; i < ARRAY_SIZE(features); i++) {
        if (handshake_has_name(peer, features[i])) {
            QAPI_LIST_APPEND(tail, g_strdup(features[i]));
        }
    }
    return common;
}

static HandshakeSeverity issue_severity(const MigrationHandshakeIssue *issue)
{
    return qapi_enum_parse(&severity_lookup, issue->severity,
                           HANDSHAKE_WARNING, NULL);
}

bool handshake_ignore_validate(const strList *ignore, Error **errp)
{
    for (unsigned count = 0; ignore; ignore = ignore->next) {
        g_autofree char *code = g_strndup(ignore->value,
                                          strcspn(ignore->value, ":"));
        const char *subject = ignore->value + strlen(code);

        if (!g_strv_contains(ignorable, code) || !strcmp(subject, ":") ||
            strlen(subject) > TEXT_MAX) {
            g_autofree char *word = handshake_text(ignore->value);
            g_autofree char *all = g_strjoinv(", ", (char **)ignorable);

            error_setg(errp, "'%s' cannot be ignored; CODE or CODE:SUBJECT can "
                       "where CODE is one of %s", word, all);
            return false;
        }
        if (++count > HANDSHAKE_IGNORE_MAX) {
            error_setg(errp, "At most %d issues can be ignored",
                       HANDSHAKE_IGNORE_MAX);
            return false;
        }
    }
    return true;
}

static bool is_ignored(const strList *ignore, const char *code,
                       const char *subject)
{
    g_autofree char *text = NULL;
    size_t len = strlen(code);

    if (!ignore || !g_strv_contains(ignorable, code)) {
        return false;
    }
    /* As a user has seen it */
    text = handshake_text(subject);
    for (; ignore; ignore = ignore->next) {
        const char *word = ignore->value;

        if (!strncmp(word, code, len) &&
            (!word[len] || (word[len] == ':' && text &&
                            !strcmp(word + len + 1, text)))) {
            return true;
        }
    }
    return false;
}

/* A warning that is ignored weighs as little as what is worth knowing */
static HandshakeSeverity issue_weight(const HandshakeIssues *issues,
                                      const MigrationHandshakeIssue *issue)
{
    HandshakeSeverity severity = issue_severity(issue);

    if (severity == HANDSHAKE_WARNING &&
        is_ignored(issues->ignore, issue->code, issue->subject)) {
        return HANDSHAKE_INFO;
    }
    return severity;
}

void handshake_issues_ignore(HandshakeIssues *issues, const strList *ignore)
{
    qapi_free_strList(issues->ignore);
    issues->ignore = QAPI_CLONE(strList, ignore);
    issues->ignored = 0;
    for (MigrationHandshakeIssueList *l = issues->list; l; l = l->next) {
        issues->ignored += issue_weight(issues, l->value) !=
                           issue_severity(l->value);
    }
}

bool handshake_issues_refuse(const HandshakeIssues *issues, bool strict)
{
    return issues->errors || (strict && issues->warnings > issues->ignored);
}

static void issues_drop_last(HandshakeIssues *issues)
{
    MigrationHandshakeIssueList **last = &issues->list;

    while ((*last)->next) {
        last = &(*last)->next;
    }
    g_clear_pointer(last, qapi_free_MigrationHandshakeIssueList);
    issues->listed--;
    issues->omitted++;
}

/*
 * Counts one more issue.  Returns whether it is to be listed: an error is, in
 * the place of something that is none if need be.
 */
static bool issues_make_room(HandshakeIssues *issues,
                             HandshakeSeverity severity)
{
    bool error = severity == HANDSHAKE_ERROR;

    issues->errors += error;
    issues->warnings += severity == HANDSHAKE_WARNING;

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
                          MigrationHandshakeIssue *issue,
                          HandshakeSeverity severity)
{
    MigrationHandshakeIssueList **at = &issues->list;

    g_free(issue->severity);
    issue->severity = g_strdup(qapi_enum_lookup(&severity_lookup, severity));

    while (*at && (severity != HANDSHAKE_ERROR ||
                   issue_severity((*at)->value) == HANDSHAKE_ERROR)) {
        at = &(*at)->next;
    }
    QAPI_LIST_PREPEND(*at, issue);
    issues->listed++;
}

void handshake_issue_add(HandshakeIssues *issues, const char *code,
                         HandshakeSeverity severity, const char *subject,
                         const char *source, const char *destination,
                         const char *fmt, ...)
{
    MigrationHandshakeIssue *issue;
    g_autofree char *message = NULL;
    bool ignored = severity != HANDSHAKE_INFO &&
                   is_ignored(issues->ignore, code, subject);
    va_list ap;

    if (ignored) {
        severity = HANDSHAKE_WARNING;
        issues->ignored++;
    }
    if (!issues_make_room(issues, severity)) {
        /* A peer may make it a great many: no text is made for nobody */
        return;
    }
    va_start(ap, fmt);
    message = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    issue = g_new0(MigrationHandshakeIssue, 1);
    issue->code = handshake_text(code);
    issue->subject = handshake_text(subject);
    issue->source = handshake_text(source);
    issue->destination = handshake_text(destination);
    if (ignored) {
        g_autofree char *cut = text_cut(message, TEXT_MAX - strlen(IGNORED));

        issue->message = g_strconcat(cut, IGNORED, NULL);
    } else {
        issue->message = handshake_text(message);
    }
    issues_insert(issues, issue, severity);
}

void handshake_issues_free(HandshakeIssues *issues)
{
    qapi_free_MigrationHandshakeIssueList(issues->list);
    qapi_free_strList(issues->ignore);
    *issues = (HandshakeIssues) { 0 };
}

char *handshake_issues_summary(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssue *gravest = NULL;
    const MigrationHandshakeIssueList *l;
    unsigned warnings = issues->warnings - issues->ignored;
    unsigned count = issues->errors + warnings;
    g_autoptr(GString) text = g_string_new(NULL);

    for (l = issues->list; l; l = l->next) {
        /* The enum goes from bad to harmless */
        if (!gravest || issue_weight(issues, l->value) <
                        issue_weight(issues, gravest)) {
            gravest = l->value;
        }
    }
    if (!gravest) {
        return g_strdup("no reason was given");
    }
    if (!count) {
        return g_strdup_printf("%s (%s)", gravest->message, gravest->code);
    }
    if (issues->errors) {
        g_string_append_printf(text, "%u problem%s%s", issues->errors,
                               issues->errors == 1 ? "" : "s",
                               warnings ? " and " : "");
    }
    if (warnings) {
        g_string_append_printf(text, "%u warning%s", warnings,
                               warnings == 1 ? "" : "s");
    }
    g_string_append_printf(text, ": %s (%s)%s", gravest->message,
                           gravest->code, count > 1 ? ", ..." : "");
    return g_strdup(text->str);
}

/*
 * What a peer's JSON may cost, found out before anything is parsed.
 *
 * The scan knows tokens, and leaves the grammar to QEMU's parser.  It must
 * refuse whatever QEMU's lexer does: that skips text after an error and goes
 * on, so that the two would no longer agree on where a string ends, and
 * brackets could hide.
 */
typedef struct JSONScan {
    const char *text;
    const char *pos;
    int depth;
    int objects;
    int members[JSON_DEPTH_MAX + 1];    /* by depth: colons so far */
    size_t string_len;                  /* of the last one */
} JSONScan;

static bool scan_error(const JSONScan *s, const char *what, Error **errp)
{
    error_setg(errp, "JSON error at byte %td: %s", s->pos - s->text, what);
    return false;
}

static bool scan_string(JSONScan *s, Error **errp)
{
    const char *begin = ++s->pos;

    while (*s->pos != '"') {
        s->pos += *s->pos == '\\';
        if ((uint8_t)*s->pos < 0x20 || (uint8_t)*s->pos > 0xfd) {
            return scan_error(s, "invalid character in a string", errp);
        }
        s->pos++;
    }
    s->string_len = s->pos++ - begin;
    return true;
}

/* One that has more than 64 bits becomes a double, which is no integer */
static bool scan_number(JSONScan *s, Error **errp)
{
    size_t len;

    s->pos += *s->pos == '-';
    len = strspn(s->pos, "0123456789");
    if (!len || (len > 1 && *s->pos == '0') || strchr(".eE", s->pos[len])) {
        return scan_error(s, "not an integer", errp);
    }
    s->pos += len;
    return true;
}

static bool scan_token(JSONScan *s, Error **errp)
{
    switch (*s->pos) {
    case '"':
        return scan_string(s, errp);
    case '-':
    case '0' ... '9':
        return scan_number(s, errp);
    case '{':
        if (++s->objects > JSON_OBJECTS_MAX) {
            return scan_error(s, "too many objects", errp);
        }
        /* fall through */
    case '[':
        if (++s->depth > JSON_DEPTH_MAX) {
            return scan_error(s, "nested too deeply", errp);
        }
        s->members[s->depth] = 0;
        break;
    case '}':
    case ']':
        if (!s->depth) {
            return scan_error(s, "unexpected closing bracket", errp);
        }
        s->depth--;
        break;
    case ':':
        if (s->string_len > JSON_NAME_MAX) {
            return scan_error(s, "member name too long", errp);
        }
        if (++s->members[s->depth] > JSON_MEMBERS_MAX) {
            return scan_error(s, "too many members", errp);
        }
        break;
    case 'a' ... 'z':           /* true, false, null: the parser looks */
    case ',':
    case ' ':
    case '\t':
    case '\n':
    case '\r':
        break;
    default:
        return scan_error(s, "unexpected character", errp);
    }
    s->pos++;
    return true;
}

static bool scan_json(const GString *json, Error **errp)
{
    JSONScan s = { .text = json->str, .pos = json->str };

    while (s.pos < json->str + json->len) {
        if (!scan_token(&s, errp)) {
            return false;
        }
    }
    return true;
}

/* Returns: the one object that the peer has sent, or NULL with @errp set */
static QDict *parse_json(const GString *json, Error **errp)
{
    QObject *obj;
    QDict *dict;

    if (!scan_json(json, errp)) {
        return NULL;
    }
    obj = qobject_from_json(json->str, errp);
    dict = qobject_to(QDict, obj);
    if (obj && !dict) {
        error_setg(errp, "JSON error: expected an object");
        qobject_unref(obj);
    }
    return dict;
}

/* One of the numbers that are never assigned: 0x0a0a, 0x1a1a, ... 0xfafa */
static uint16_t grease_number(void)
{
    return 0x0a0a | (g_random_int() & 0xf) * 0x1010;
}

/* One of the names that are never assigned */
static char *grease_name(void)
{
    return g_strdup_printf("grease-%08" PRIx32, g_random_int());
}

static void grease_dict(QDict *dict);

static void grease_list(QList *list, const char *name)
{
    QDict *first = qobject_to(QDict, qlist_peek(list));

    if (first) {
        grease_dict(first);
    } else if (g_str_equal(name, "features")) {
        g_autofree char *feature = grease_name();

        qlist_append_str(list, feature);
    } else if (g_str_equal(name, "versions")) {
        qlist_append_int(list, grease_number());
    }
}

/*
 * Whatever may gain something in a later version gets something that nobody
 * knows, so that a peer which forgets to ignore that fails in its first test.
 * There is no room for it in every item of a list, and none in lists of what
 * must be known, or is shown to people when it is declined.
 */
static void grease_dict(QDict *dict)
{
    g_autofree char *name = grease_name();
    const QDictEntry *entry;

    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        QDict *member = qobject_to(QDict, qdict_entry_value(entry));
        QList *list = qobject_to(QList, qdict_entry_value(entry));

        if (member) {
            grease_dict(member);
        } else if (list) {
            grease_list(list, qdict_entry_key(entry));
        }
    }
    qdict_put_int(dict, name, g_random_int());
}

typedef bool VisitType(Visitor *v, const char *name, void **obj, Error **errp);

/* The message as it goes out, with grease */
static QDict *to_dict(const void *message, VisitType *visit)
{
    void *obj = (void *)message;    /* an output visitor changes nothing */
    QObject *result = NULL;
    Visitor *v = qobject_output_visitor_new(&result);
    QDict *dict;

    visit(v, NULL, &obj, &error_abort);
    visit_complete(v, &result);
    visit_free(v);
    dict = qobject_to(QDict, result);
    grease_dict(dict);
    return dict;
}

#define TO_DICT(type, message) \
    to_dict(message, (VisitType *)visit_type_ ## type)

static bool put_dict(GByteArray *buf, HandshakeFrameType type,
                     const QDict *dict, Error **errp)
{
    g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));

    /* A peer scans it, too */
    if (!scan_json(json, errp) ||
        !handshake_frame_put(buf, type, HANDSHAKE_FRAME_CRITICAL, json->str,
                             errp)) {
        return false;
    }
    trace_migration_handshake_message_sent(handshake_frame_type_str(type),
                                           json->str);
    return true;
}

/* What a peer can rely on, besides the schema */
static bool check_profile(const MigrationProfile *profile, Error **errp)
{
    size_t longest = 0, sections = 0, ram_blocks = 0, mapped = 0;
    size_t bitmaps = QAPI_LIST_LENGTH(profile->bitmaps);

    for (MigrationProfileSectionList *l = profile->sections; l; l = l->next) {
        longest = MAX(longest, strlen(l->value->name));
        sections += QAPI_LIST_LENGTH(l->value->instances) ?: 1;
    }
    for (MigrationProfileRAMBlockList *l = profile->ram_blocks; l;
         l = l->next) {
        longest = MAX(longest, strlen(l->value->name));
        mapped = MAX(mapped, QAPI_LIST_LENGTH(l->value->mapped));
        ram_blocks++;
    }
    for (MigrationProfileBitmapList *l = profile->bitmaps; l; l = l->next) {
        longest = MAX(longest, strlen(l->value->node));
        longest = MAX(longest, l->value->name ? strlen(l->value->name) : 0);
    }
    if (longest > STREAM_NAME_MAX) {
        error_setg(errp, "name of more than %d bytes", STREAM_NAME_MAX);
    } else if (sections > SECTIONS_MAX) {
        error_setg(errp, "more than %d sections", SECTIONS_MAX);
    } else if (ram_blocks > RAM_BLOCKS_MAX) {
        error_setg(errp, "more than %d RAM blocks", RAM_BLOCKS_MAX);
    } else if (bitmaps > HANDSHAKE_BITMAPS_MAX) {
        error_setg(errp, "more than %d dirty bitmaps",
                   HANDSHAKE_BITMAPS_MAX);
    } else if (mapped > HANDSHAKE_MAPPED_MAX) {
        error_setg(errp, "RAM block of more than %d parts",
                   HANDSHAKE_MAPPED_MAX);
    } else {
        return true;
    }
    return false;
}

static bool promise_is_well_formed(const char *name, const char *text)
{
    g_autoptr(GByteArray) bytes = NULL;
    g_autoptr(GArray) items = NULL;

    if (!strcmp(name, "pci-config") || !strcmp(name, "pci-status")) {
        bytes = handshake_bytes_from_text(text);
        return bytes;
    }
    if (!strcmp(name, "virtio-features")) {
        items = handshake_bits_from_text(text);
        return items;
    }
    if (!strcmp(name, "cpu-registers")) {
        items = handshake_registers_from_text(text);
        return items;
    }
    return true;
}

/*
 * Whether a value, and what is in it, is not too long.  @inner: an item of a
 * list, or the name of one.  That it is not nested too deeply is known.
 */
static bool promise_fits(const QObject *value, bool inner)
{
    const QString *str = qobject_to(QString, value);
    const QDict *dict = qobject_to(QDict, value);
    const QList *list = qobject_to(QList, value);
    const QDictEntry *member;
    const QListEntry *item;
    bool fits = !str || strlen(qstring_get_str(str)) <=
                        (inner ? STREAM_NAME_MAX : HANDSHAKE_PROMISE_TEXT_MAX);

    for (member = dict ? qdict_first(dict) : NULL; member && fits;
         member = qdict_next(dict, member)) {
        fits = promise_fits(qdict_entry_value(member),
                            !strcmp(qdict_entry_key(member), "name"));
    }
    for (item = list ? qlist_first(list) : NULL; item && fits;
         item = qlist_next(item)) {
        fits = promise_fits(qlist_entry_obj(item), true);
    }
    return fits && (!list || qlist_size(list) <= HANDSHAKE_PROMISE_ITEMS_MAX);
}

static bool check_promises(const QDict *promises, Error **errp)
{
    const QDictEntry *entry;

    if (qdict_size(promises) > HANDSHAKE_PROMISE_NAMES_MAX) {
        error_setg(errp, "more than %d promises of a section",
                   HANDSHAKE_PROMISE_NAMES_MAX);
        return false;
    }
    for (entry = qdict_first(promises); entry;
         entry = qdict_next(promises, entry)) {
        const QObject *value = qdict_entry_value(entry);
        const QString *str = qobject_to(QString, value);

        if (!promise_fits(value, false)) {
            error_setg(errp, "a promise is too long");
            return false;
        }
        if (str && !promise_is_well_formed(qdict_entry_key(entry),
                                           qstring_get_str(str))) {
            error_setg(errp, "malformed promise '%s'", qdict_entry_key(entry));
            return false;
        }
    }
    return true;
}

/* Of a HELLO that may yet turn out to be something else */
static bool check_all_promises(const QDict *hello, Error **errp)
{
    const QDict *profile = qobject_to(QDict, qdict_get(hello, "profile"));
    const QList *sections = profile
        ? qobject_to(QList, qdict_get(profile, "sections")) : NULL;
    const QListEntry *entry;

    for (entry = sections ? qlist_first(sections) : NULL; entry;
         entry = qlist_next(entry)) {
        const QDict *section = qobject_to(QDict, qlist_entry_obj(entry));
        const QDict *promises = section
            ? qobject_to(QDict, qdict_get(section, "promises")) : NULL;

        if (promises && !check_promises(promises, errp)) {
            return false;
        }
    }
    return true;
}

static bool put_hello(GByteArray *buf, const MigrationHandshakeHello *hello,
                      Error **errp)
{
    g_autoptr(QDict) dict = TO_DICT(MigrationHandshakeHello, hello);

    return check_profile(hello->profile, errp) &&
           check_all_promises(dict, errp) &&
           put_dict(buf, HANDSHAKE_FRAME_HELLO, dict, errp);
}

/* They share all that they have with @l */
static MigrationProfileSectionList *
sections_without_promises(const MigrationProfileSectionList *l)
{
    MigrationProfileSectionList *sections = NULL;
    MigrationProfileSectionList **tail = &sections;

    for (; l; l = l->next) {
        MigrationProfileSection *section = g_memdup2(l->value,
                                                     sizeof(*l->value));

        section->promises = NULL;
        QAPI_LIST_APPEND(tail, section);
    }
    return sections;
}

static void sections_free(MigrationProfileSectionList *l)
{
    while (l) {
        MigrationProfileSectionList *next = l->next;

        g_free(l->value);
        g_free(l);
        l = next;
    }
}

bool handshake_put_hello(GByteArray *buf, const MigrationHandshakeHello *hello,
                         Error **errp)
{
    MigrationHandshakeHello brief = *hello;
    MigrationProfile profile = *hello->profile;
    bool done;

    if (put_hello(buf, hello, NULL)) {
        return true;
    }
    profile.sections = sections_without_promises(hello->profile->sections);
    brief.profile = &profile;
    done = put_hello(buf, &brief, NULL);
    sections_free(profile.sections);
    if (done) {
        return true;
    }
    profile.has_sections = false;
    profile.sections = NULL;
    profile.has_ram_blocks = false;
    profile.ram_blocks = NULL;
    profile.has_bitmaps = false;
    profile.bitmaps = NULL;
    return put_hello(buf, &brief, errp);
}

/* Leaves @max items in a list; returns how many it has lost */
static size_t cut_list(QDict *dict, const char *name, size_t max)
{
    QList *list = qdict_get_qlist(dict, name);
    size_t size = list ? qlist_size(list) : 0;
    QList *rest;

    if (size <= max) {
        return 0;
    }
    rest = qlist_new();
    for (size_t i = 0; i < max; i++) {
        qlist_append_obj(rest, qlist_pop(list));
    }
    qdict_put(dict, name, rest);
    return size - max;
}

/* With as many issues as there is room for; the others are counted */
static bool put_with_issues(GByteArray *buf, HandshakeFrameType type,
                            QDict *dict, unsigned omitted, Error **errp)
{
    for (size_t max = HANDSHAKE_ISSUES_MAX; ; max /= 2) {
        omitted += cut_list(dict, "issues", max);
        cut_list(dict, "declined", max);
        if (omitted) {
            qdict_put_int(dict, "issues-omitted", omitted);
        }
        if (!max) {
            return put_dict(buf, type, dict, errp);
        }
        if (put_dict(buf, type, dict, NULL)) {
            return true;
        }
    }
}

bool handshake_put_verdict(GByteArray *buf, const HandshakeVerdict *verdict,
                           Error **errp)
{
    MigrationHandshakeVerdict message = *verdict->message;
    g_autoptr(QDict) dict = NULL;

    message.has_capabilities &= verdict->accept;
    message.has_declined &= verdict->accept;
    message.has_parameters &= verdict->accept;
    message.has_issues = verdict->issues.list;
    message.issues = verdict->issues.list;
    dict = TO_DICT(MigrationHandshakeVerdict, &message);
    return put_with_issues(buf, verdict->accept ? HANDSHAKE_FRAME_ACCEPT
                                                : HANDSHAKE_FRAME_REJECT,
                           dict, verdict->issues.omitted, errp);
}

bool handshake_put_commit(GByteArray *buf,
                          const MigrationHandshakeCommit *commit, Error **errp)
{
    g_autoptr(QDict) dict = TO_DICT(MigrationHandshakeCommit, commit);

    return put_dict(buf, HANDSHAKE_FRAME_COMMIT, dict, errp);
}

bool handshake_put_reason(GByteArray *buf, HandshakeFrameType type,
                          const MigrationHandshakeReason *reason,
                          const HandshakeIssues *issues, Error **errp)
{
    g_autofree char *text = handshake_text(reason->message);
    MigrationHandshakeReason message = *reason;
    g_autoptr(QDict) dict = NULL;

    message.message = text;
    message.has_issues = issues->list;
    message.issues = issues->list;
    dict = TO_DICT(MigrationHandshakeReason, &message);
    return put_with_issues(buf, type, dict, issues->omitted, errp);
}

void handshake_put_grease(GByteArray *buf)
{
    handshake_frame_put(buf, grease_number(), 0, "{}", &error_abort);
}

static void neutralize(QObject *obj);

/* Returns: a new reference to what takes the place of @value */
static QObject *neutral(QObject *value)
{
    QString *str = qobject_to(QString, value);

    if (str) {
        g_autofree char *text = handshake_text(qstring_get_str(str));

        return QOBJECT(qstring_from_str(text));
    }
    neutralize(value);
    return qobject_ref(value);
}

/* Texts in an object or a list become such that may be shown to people */
static void neutralize(QObject *obj)
{
    QDict *dict = qobject_to(QDict, obj);
    QList *list = qobject_to(QList, obj);
    const QDictEntry *member;
    QListEntry *item;

    for (member = dict ? qdict_first(dict) : NULL; member;
         member = qdict_next(dict, member)) {
        qdict_put_obj(dict, qdict_entry_key(member),
                      neutral(qdict_entry_value(member)));
    }
    if (list) {
        QLIST_FOREACH_ENTRY(list, item) {
            QObject *value = item->value;

            item->value = neutral(value);
            qobject_unref(value);
        }
    }
}

static void *from_object(QObject *obj, VisitType *visit, strList **ignored,
                         Error **errp)
{
    Visitor *v = qobject_input_visitor_new_lenient(obj, ignored,
                                                   NOT_UNDERSTOOD_MAX);
    void *message = NULL;

    visit(v, NULL, &message, errp);
    visit_free(v);
    return message;
}

#define FROM_OBJECT(type, obj, ignored, errp) \
    ((type *)from_object(obj, (VisitType *)visit_type_ ## type, ignored, errp))

MigrationHandshakeHello *handshake_get_hello(const GString *json,
                                             strList **not_understood,
                                             Error **errp)
{
    g_autoptr(QDict) dict = parse_json(json, errp);
    g_autoptr(MigrationHandshakeHello) hello = NULL;

    if (!dict) {
        return NULL;
    }
    /* The rest is compared; its texts become others where they are shown */
    neutralize(qdict_get(dict, "declined"));
    neutralize(qdict_get(dict, "combinations"));
    if (!check_all_promises(dict, errp)) {
        return NULL;
    }
    hello = FROM_OBJECT(MigrationHandshakeHello, QOBJECT(dict), not_understood,
                        errp);
    for (strList *l = not_understood ? *not_understood : NULL; l; l = l->next) {
        g_autofree char *name = l->value;

        l->value = handshake_text(name);
    }
    if (!hello) {
        return NULL;
    }
    if (!hello->profile) {
        hello->profile = g_new0(MigrationProfile, 1);
    }
    if (QAPI_LIST_LENGTH(hello->ignore) > HANDSHAKE_IGNORE_MAX) {
        error_setg(errp, "more than %d issues to be ignored",
                   HANDSHAKE_IGNORE_MAX);
        return NULL;
    }
    return check_profile(hello->profile, errp) ? g_steal_pointer(&hello) : NULL;
}

MigrationHandshakeHello *handshake_get_profile(const QObject *profile,
                                               Error **errp)
{
    g_autoptr(GString) json = qobject_to_json(profile);

    if (json->len > HANDSHAKE_HELLO_MAX) {
        error_setg(errp, "it has more than %u bytes",
                   (unsigned)HANDSHAKE_HELLO_MAX);
        return NULL;
    }
    return handshake_get_hello(json, NULL, errp);
}

/* Of a message other than HELLO, of which no text is needed as it came */
static QDict *parse_neutral(const GString *json, Error **errp)
{
    QDict *dict = parse_json(json, errp);

    neutralize(QOBJECT(dict));
    return dict;
}

/* Each by itself: one that is malformed is no reason to miss the others */
static void get_issues(const QDict *dict, HandshakeIssues *issues)
{
    QList *list = qobject_to(QList, qdict_get(dict, "issues"));
    QNum *omitted = qobject_to(QNum, qdict_get(dict, "issues-omitted"));
    const QListEntry *entry;
    uint64_t more;

    for (entry = list ? qlist_first(list) : NULL; entry;
         entry = qlist_next(entry)) {
        MigrationHandshakeIssue *issue =
            FROM_OBJECT(MigrationHandshakeIssue, qlist_entry_obj(entry), NULL,
                        NULL);

        if (!issue) {
            issues->omitted++;
        } else if (issues_make_room(issues, issue_severity(issue))) {
            issues_insert(issues, issue, issue_severity(issue));
        } else {
            qapi_free_MigrationHandshakeIssue(issue);
        }
    }
    if (omitted && qnum_get_try_uint(omitted, &more)) {
        issues->omitted += MIN(more, INT32_MAX);
    }
}

/* Of a message that counts by its type; an empty object if it is none */
static QDict *parse_leniently(const GString *json)
{
    return parse_neutral(json, NULL) ?: qdict_new();
}

HandshakeVerdict *handshake_get_verdict(const GString *json, bool accept,
                                        Error **errp)
{
    g_autoptr(QDict) dict = accept ? parse_neutral(json, errp)
                                   : parse_leniently(json);
    MigrationHandshakeVerdict *message;
    HandshakeVerdict *verdict;
    strList *common;

    if (!dict) {
        return NULL;
    }
    message = FROM_OBJECT(MigrationHandshakeVerdict, QOBJECT(dict), NULL,
                          accept ? errp : NULL);
    if (!message) {
        if (accept) {
            return NULL;
        }
        message = g_new0(MigrationHandshakeVerdict, 1);
        message->message = g_strdup(qdict_get_try_str(dict, "message"));
    }
    common = handshake_features_common(message->features);
    qapi_free_strList(message->features);
    message->features = common;
    message->has_features = common;

    verdict = g_new0(HandshakeVerdict, 1);
    verdict->accept = accept;
    verdict->message = message;
    /* They stand in verdict->issues, bounded and in order */
    message->has_issues = false;
    g_clear_pointer(&message->issues, qapi_free_MigrationHandshakeIssueList);
    get_issues(dict, &verdict->issues);
    return verdict;
}

MigrationHandshakeCommit *handshake_get_commit(const GString *json,
                                               Error **errp)
{
    g_autoptr(QDict) dict = parse_neutral(json, errp);

    return dict ? FROM_OBJECT(MigrationHandshakeCommit, QOBJECT(dict), NULL,
                              errp) : NULL;
}

MigrationHandshakeReason *handshake_get_reason(const GString *json,
                                               HandshakeIssues *issues)
{
    g_autoptr(QDict) dict = parse_leniently(json);
    MigrationHandshakeReason *reason = g_new0(MigrationHandshakeReason, 1);
    const char *message = qdict_get_try_str(dict, "message");

    if (issues) {
        get_issues(dict, issues);
    }
    reason->message = g_strdup(message ?: "no reason was given");
    reason->guest = g_strdup(qdict_get_try_str(dict, "guest"));
    reason->loaded = qdict_get_try_bool(dict, "loaded", false);
    reason->has_loaded = reason->loaded;
    return reason;
}
