/*
 * Migration handshake: fuzz the reader of JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "../migration/handshake-json.h"
#include "fuzz.h"

/* A value that was accepted is within the bounds of the specification */
static void check_value(const QObject *value, int depth, unsigned *objects)
{
    const QDict *dict = qobject_to(QDict, value);
    const QList *list = qobject_to(QList, value);
    const QNum *num = qobject_to(QNum, value);
    const QString *str = qobject_to(QString, value);

    if (dict) {
        const QDictEntry *entry;

        g_assert_cmpuint(qdict_size(dict), <=, HANDSHAKE_JSON_MEMBERS_MAX);
        g_assert_cmpuint(++*objects, <=, HANDSHAKE_JSON_OBJECTS_MAX);
        for (entry = qdict_first(dict); entry;
             entry = qdict_next(dict, entry)) {
            const char *name = qdict_entry_key(entry);

            g_assert_cmpuint(strlen(name), <=, HANDSHAKE_JSON_NAME_MAX);
            g_assert_true(g_utf8_validate(name, -1, NULL));
            check_value(qdict_entry_value(entry), depth + 1, objects);
        }
    } else if (list) {
        const QListEntry *entry;

        QLIST_FOREACH_ENTRY(list, entry) {
            check_value(qlist_entry_obj(entry), depth + 1, objects);
        }
    } else if (num) {
        g_assert_cmpint(num->kind, !=, QNUM_DOUBLE);
    } else if (str) {
        g_assert_true(g_utf8_validate(qstring_get_str(str), -1, NULL));
    }
    if (dict || list) {
        g_assert_cmpint(depth, <=, HANDSHAKE_JSON_DEPTH_MAX);
    }
}

/* QEMU's own parser must not have to say no: ours comes first */
static void check_error(const Error *err)
{
    const char *text = error_get_pretty(err);

    g_assert(g_str_has_prefix(text, "JSON error at byte ") ||
             /* As an escape; only the parser resolves it */
             strstr(text, "is not a valid Unicode character"));
}

void fuzz_one(const uint8_t *data, size_t size)
{
    g_autoptr(Error) err = NULL;
    g_autoptr(QDict) dict = handshake_json_parse((const char *)data, size,
                                                 &err);
    g_autoptr(QDict) again = NULL;
    g_autoptr(GString) text = NULL;
    unsigned objects = 0;

    if (!dict) {
        check_error(err);
        return;
    }
    g_assert(!err);
    check_value(QOBJECT(dict), 1, &objects);

    text = qobject_to_json(QOBJECT(dict));
    again = handshake_json_parse(text->str, text->len, &error_abort);
    g_assert_true(qobject_is_equal(QOBJECT(dict), QOBJECT(again)));
}
