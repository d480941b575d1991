/*
 * Migration handshake: fuzz the reader of JSON
 *
 * The reader is no door of its own, so it comes with all of its room.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "../../migration/handshake/message.c"
#include "fuzz.h"

/* A value that was accepted is within bounds, and its texts can be shown */
static void check_value(const QObject *value, int depth, unsigned *objects)
{
    const QDict *dict = qobject_to(QDict, value);
    const QList *list = qobject_to(QList, value);
    const QString *str = qobject_to(QString, value);

    if (dict) {
        const QDictEntry *entry;

        g_assert_cmpuint(qdict_size(dict), <=, JSON_MEMBERS_MAX);
        g_assert_cmpuint(++*objects, <=, JSON_OBJECTS_MAX);
        for (entry = qdict_first(dict); entry;
             entry = qdict_next(dict, entry)) {
            g_assert_cmpuint(strlen(qdict_entry_key(entry)), <=, JSON_NAME_MAX);
            check_value(qdict_entry_value(entry), depth + 1, objects);
        }
    } else if (list) {
        const QListEntry *entry;

        QLIST_FOREACH_ENTRY(list, entry) {
            check_value(qlist_entry_obj(entry), depth + 1, objects);
        }
    }
    if (str) {
        fuzz_check_text(qstring_get_str(str));
    }
    if (dict || list) {
        g_assert_cmpint(depth, <=, JSON_DEPTH_MAX);
    }
}

void fuzz_one(const uint8_t *data, size_t size)
{
    g_autoptr(GString) json = g_string_new_len((const char *)data, size);
    g_auto(FuzzError) err = NULL;
    g_autoptr(QDict) dict = parse_json(json, &err);
    unsigned objects = 0;

    g_assert(!dict == !!err);
    if (!dict) {
        /* What QEMU's lexer would stumble over does not get that far */
        g_assert(!g_str_has_prefix(error_get_pretty(err),
                                   "JSON parse error, stray"));
        return;
    }
    neutralize(QOBJECT(dict));
    check_value(QOBJECT(dict), 1, &objects);
}
