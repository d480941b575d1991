/*
 * Migration handshake: the JSON that a peer may send
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/unicode.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-types.h"
#include "qapi/util.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "handshake-json.h"

/* A strict reader of RFC 8259; it builds nothing and says yes, or why not */
typedef struct JSONScanner {
    const char *start;
    const char *pos;
    const char *end;
    int depth;
    int objects;
} JSONScanner;

static bool scan_value(JSONScanner *s, Error **errp);

static bool scan_error(JSONScanner *s, const char *what, Error **errp)
{
    error_setg(errp, "JSON error at byte %td: %s", s->pos - s->start, what);
    return false;
}

static int scan_peek(JSONScanner *s)
{
    return s->pos < s->end ? (unsigned char)*s->pos : -1;
}

static bool scan_accept(JSONScanner *s, char c)
{
    if (scan_peek(s) != c) {
        return false;
    }
    s->pos++;
    return true;
}

static void scan_space(JSONScanner *s)
{
    while (s->pos < s->end && strchr(" \t\n\r", *s->pos) && *s->pos) {
        s->pos++;
    }
}

static bool scan_hex4(JSONScanner *s, uint32_t *value, Error **errp)
{
    *value = 0;
    for (int i = 0; i < 4; i++) {
        int c = scan_peek(s);

        if (c < 0 || !g_ascii_isxdigit(c)) {
            return scan_error(s, "expected four hexadecimal digits", errp);
        }
        *value = *value << 4 | g_ascii_xdigit_value(c);
        s->pos++;
    }
    return true;
}

static bool is_high_surrogate(uint32_t c)
{
    return c >= 0xd800 && c <= 0xdbff;
}

static bool is_low_surrogate(uint32_t c)
{
    return c >= 0xdc00 && c <= 0xdfff;
}

/* After "\u" */
static bool scan_unicode_escape(JSONScanner *s, GString *out, Error **errp)
{
    uint32_t c, low;

    if (!scan_hex4(s, &c, errp)) {
        return false;
    }
    if (is_high_surrogate(c)) {
        if (!scan_accept(s, '\\') || !scan_accept(s, 'u')) {
            return scan_error(s, "unpaired surrogate", errp);
        }
        if (!scan_hex4(s, &low, errp)) {
            return false;
        }
        if (!is_low_surrogate(low)) {
            return scan_error(s, "unpaired surrogate", errp);
        }
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    } else if (is_low_surrogate(c)) {
        return scan_error(s, "unpaired surrogate", errp);
    }
    if (c == 0) {
        return scan_error(s, "U+0000 is not allowed", errp);
    }
    g_string_append_unichar(out, c);
    return true;
}

static bool scan_escape(JSONScanner *s, GString *out, Error **errp)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    int c = scan_peek(s);
    const char *p;

    if (scan_accept(s, 'u')) {
        return scan_unicode_escape(s, out, errp);
    }
    p = c > 0 ? strchr(from, c) : NULL;
    if (!p) {
        return scan_error(s, "unknown escape", errp);
    }
    g_string_append_c(out, to[p - from]);
    s->pos++;
    return true;
}

/* Leaves the string, unescaped, in @out */
static bool scan_string(JSONScanner *s, GString *out, Error **errp)
{
    if (!scan_accept(s, '"')) {
        return scan_error(s, "expected a string in double quotes", errp);
    }
    for (;;) {
        int c = scan_peek(s);

        if (c < 0) {
            return scan_error(s, "unterminated string", errp);
        }
        if (c < 0x20) {
            return scan_error(s, "control character in a string", errp);
        }
        if (c < 0x80) {
            s->pos++;
            if (c == '"') {
                return true;
            }
            if (c != '\\') {
                g_string_append_c(out, c);
            } else if (!scan_escape(s, out, errp)) {
                return false;
            }
        } else {
            char *next;

            /* 0 is the modified encoding of U+0000 */
            if (mod_utf8_codepoint(s->pos, s->end - s->pos, &next) <= 0) {
                return scan_error(s, "invalid UTF-8", errp);
            }
            g_string_append_len(out, s->pos, next - s->pos);
            s->pos = next;
        }
    }
}

static bool scan_number(JSONScanner *s, Error **errp)
{
    const char *begin = s->pos;
    bool negative = scan_accept(s, '-');
    const uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : UINT64_MAX;
    uint64_t value = 0;
    int digits = 0;
    int c;

    while (c = scan_peek(s), c >= '0' && c <= '9') {
        if (digits == 1 && value == 0) {
            return scan_error(s, "number with a leading zero", errp);
        }
        if (value > (limit - (c - '0')) / 10) {
            s->pos = begin;
            return scan_error(s, "integer out of range", errp);
        }
        value = value * 10 + (c - '0');
        digits++;
        s->pos++;
    }
    if (!digits) {
        return scan_error(s, "expected a value", errp);
    }
    if (c == '.' || c == 'e' || c == 'E') {
        return scan_error(s, "number with a fraction or an exponent", errp);
    }
    return true;
}

static bool scan_literal(JSONScanner *s, Error **errp)
{
    static const char *const literals[] = { "true", "false", "null" };

    for (int i = 0; i < ARRAY_SIZE(literals); i++) {
        size_t len = strlen(literals[i]);

        if (s->end - s->pos >= len && !memcmp(s->pos, literals[i], len)) {
            s->pos += len;
            return true;
        }
    }
    return scan_error(s, "expected a value", errp);
}

static bool scan_member(JSONScanner *s, GHashTable *names, Error **errp)
{
    g_autoptr(GString) name = g_string_new(NULL);

    scan_space(s);
    if (!scan_string(s, name, errp)) {
        return false;
    }
    if (name->len > HANDSHAKE_JSON_NAME_MAX) {
        return scan_error(s, "member name too long", errp);
    }
    if (g_hash_table_size(names) == HANDSHAKE_JSON_MEMBERS_MAX) {
        return scan_error(s, "too many members", errp);
    }
    if (!g_hash_table_add(names, g_strdup(name->str))) {
        return scan_error(s, "duplicate member", errp);
    }
    scan_space(s);
    if (!scan_accept(s, ':')) {
        return scan_error(s, "expected ':'", errp);
    }
    return scan_value(s, errp);
}

/* After the opening bracket, which is @close's partner */
static bool scan_items(JSONScanner *s, char close, Error **errp)
{
    g_autoptr(GHashTable) names =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    if (++s->depth > HANDSHAKE_JSON_DEPTH_MAX) {
        return scan_error(s, "nested too deeply", errp);
    }
    if (close == '}' && ++s->objects > HANDSHAKE_JSON_OBJECTS_MAX) {
        return scan_error(s, "too many objects", errp);
    }
    scan_space(s);
    if (!scan_accept(s, close)) {
        do {
            if (!(close == '}' ? scan_member(s, names, errp)
                               : scan_value(s, errp))) {
                return false;
            }
        } while (scan_accept(s, ','));
        if (!scan_accept(s, close)) {
            return scan_error(s, "expected ',' or a closing bracket", errp);
        }
    }
    s->depth--;
    return true;
}

static bool scan_value(JSONScanner *s, Error **errp)
{
    g_autoptr(GString) scratch = g_string_new(NULL);
    bool ok;
    int c;

    scan_space(s);
    c = scan_peek(s);
    if (scan_accept(s, '{')) {
        ok = scan_items(s, '}', errp);
    } else if (scan_accept(s, '[')) {
        ok = scan_items(s, ']', errp);
    } else if (c == '"') {
        ok = scan_string(s, scratch, errp);
    } else if (c == '-' || g_ascii_isdigit(c)) {
        ok = scan_number(s, errp);
    } else {
        ok = scan_literal(s, errp);
    }
    scan_space(s);
    return ok;
}

QDict *handshake_json_parse(const char *text, size_t len, Error **errp)
{
    JSONScanner scanner = { .start = text, .pos = text, .end = text + len };
    g_autofree char *copy = g_strndup(text, len);
    QObject *obj;

    scan_space(&scanner);
    if (scan_peek(&scanner) != '{') {
        scan_error(&scanner, "expected an object", errp);
        return NULL;
    }
    if (!scan_value(&scanner, errp)) {
        return NULL;
    }
    if (scanner.pos != scanner.end) {
        scan_error(&scanner, "more than one value", errp);
        return NULL;
    }

    obj = qobject_from_json(copy, errp);
    return obj ? qobject_to(QDict, obj) : NULL;
}

static bool wrong_type(const char *name, const char *expected, Error **errp)
{
    error_setg(errp, "member '%s' is not %s", name, expected);
    return false;
}

bool handshake_json_get_str(const QDict *dict, const char *name,
                            char **value, Error **errp)
{
    QObject *obj = qdict_get(dict, name);
    QString *str = qobject_to(QString, obj);

    if (obj && !str) {
        return wrong_type(name, "a string", errp);
    }
    if (str) {
        g_free(*value);
        *value = g_strdup(qstring_get_str(str));
    }
    return true;
}

bool handshake_json_get_bool(const QDict *dict, const char *name,
                             bool *value, Error **errp)
{
    QObject *obj = qdict_get(dict, name);
    QBool *b = qobject_to(QBool, obj);

    if (obj && !b) {
        return wrong_type(name, "a boolean", errp);
    }
    if (b) {
        *value = qbool_get_bool(b);
    }
    return true;
}

bool handshake_json_get_uint(const QDict *dict, const char *name,
                             uint64_t *value, Error **errp)
{
    QObject *obj = qdict_get(dict, name);
    QNum *num = qobject_to(QNum, obj);
    uint64_t val;

    if (!obj) {
        return true;
    }
    if (!num || !qnum_get_try_uint(num, &val)) {
        return wrong_type(name, "an unsigned integer", errp);
    }
    *value = val;
    return true;
}

bool handshake_json_get_dict(const QDict *dict, const char *name,
                             QDict **value, Error **errp)
{
    QObject *obj = qdict_get(dict, name);

    if (obj && !qobject_to(QDict, obj)) {
        return wrong_type(name, "an object", errp);
    }
    if (obj) {
        *value = qobject_to(QDict, obj);
    }
    return true;
}

bool handshake_json_get_list(const QDict *dict, const char *name,
                             QList **value, Error **errp)
{
    QObject *obj = qdict_get(dict, name);

    if (obj && !qobject_to(QList, obj)) {
        return wrong_type(name, "a list", errp);
    }
    if (obj) {
        *value = qobject_to(QList, obj);
    }
    return true;
}

bool handshake_json_get_strlist(const QDict *dict, const char *name,
                                bool strict, strList **value, Error **errp)
{
    QList *list = NULL;
    strList **tail = value;
    const QListEntry *entry;

    if (!handshake_json_get_list(dict, name, &list, errp)) {
        return false;
    }
    if (!list) {
        return true;
    }
    qapi_free_strList(*value);
    *value = NULL;
    QLIST_FOREACH_ENTRY(list, entry) {
        QString *str = qobject_to(QString, qlist_entry_obj(entry));

        if (str) {
            QAPI_LIST_APPEND(tail, g_strdup(qstring_get_str(str)));
        } else if (strict) {
            return wrong_type(name, "a list of strings", errp);
        }
    }
    return true;
}

void handshake_json_put_strlist(QDict *dict, const char *name,
                                const strList *list)
{
    QList *qlist = qlist_new();

    for (; list; list = list->next) {
        qlist_append_str(qlist, list->value);
    }
    qdict_put(dict, name, qlist);
}

char *handshake_json_text(const QObject *value)
{
    QString *str = value ? qobject_to(QString, value) : NULL;
    g_autoptr(GString) json = NULL;

    if (!value) {
        return g_strdup("(unset)");
    }
    if (str) {
        return g_strdup(qstring_get_str(str));
    }
    json = qobject_to_json(value);
    return g_strdup(json->str);
}

bool handshake_strlist_contains(const strList *list, const char *name)
{
    for (; list; list = list->next) {
        if (!strcmp(list->value, name)) {
            return true;
        }
    }
    return false;
}
