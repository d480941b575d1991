/*
 * Migration handshake: the JSON that a peer may send
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_JSON_H
#define QEMU_MIGRATION_HANDSHAKE_JSON_H

#include "qobject/qdict.h"
#include "qobject/qlist.h"

/* How deep objects and arrays may be nested, the outermost counted */
#define HANDSHAKE_JSON_DEPTH_MAX    16
/* Bytes in a member's name, after unescaping */
#define HANDSHAKE_JSON_NAME_MAX     255
/*
 * Members of one object, and objects in all: a QDict takes 4 KiB even if it is
 * empty, and looks names up in lists that a peer can make one long one of
 */
#define HANDSHAKE_JSON_MEMBERS_MAX  256
#define HANDSHAKE_JSON_OBJECTS_MAX  8192

/**
 * handshake_json_parse: read one JSON object from a peer
 * @text: the bytes, not necessarily NUL-terminated
 * @len: how many
 *
 * QEMU's own parser accepts more than RFC 8259 does, and turns an integer that
 * it cannot hold into a double.  Peers that are not QEMU must not come to rely
 * on either, so what goes beyond the specification is an error here.
 *
 * Pure; any thread.
 *
 * Returns: the object, or NULL with @errp set
 */
QDict *handshake_json_parse(const char *text, size_t len, Error **errp);

/*
 * Members of an object from a peer.  An absent member is no error: *@value
 * stays as it was.  A member of another type is one.  All return false with
 * @errp set on error.
 */
bool handshake_json_get_str(const QDict *dict, const char *name,
                            char **value, Error **errp);
bool handshake_json_get_bool(const QDict *dict, const char *name,
                             bool *value, Error **errp);
bool handshake_json_get_uint(const QDict *dict, const char *name,
                             uint64_t *value, Error **errp);
/* *@value borrows from @dict */
bool handshake_json_get_dict(const QDict *dict, const char *name,
                             QDict **value, Error **errp);
/* *@value borrows from @dict */
bool handshake_json_get_list(const QDict *dict, const char *name,
                             QList **value, Error **errp);
/*
 * Items that are not strings are an error if @strict; otherwise they are
 * skipped, because a later version may send them
 */
bool handshake_json_get_strlist(const QDict *dict, const char *name,
                                bool strict, strList **value, Error **errp);

/**
 * handshake_json_put_strlist: add a list of strings to an object
 * @dict: the object
 * @name: the member
 * @list: its items
 */
void handshake_json_put_strlist(QDict *dict, const char *name,
                                const strList *list);

/**
 * handshake_json_text: a scalar as text for a person
 * @value: any value
 *
 * Returns: the text, to be freed by the caller; "(unset)" for NULL
 */
char *handshake_json_text(const QObject *value);

/**
 * handshake_strlist_contains: look a name up
 * @list: a list of names
 * @name: the name
 *
 * Returns: whether it is there
 */
bool handshake_strlist_contains(const strList *list, const char *name);

#endif
