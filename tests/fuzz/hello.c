/*
 * Migration handshake: fuzz the reader of HELLO
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "../migration/handshake-message.h"
#include "fuzz.h"

/* As handshake-message.c bounds it */
#define NOT_UNDERSTOOD_MAX  64

#ifdef PLANTED_BUG
/* There is room for all purposes that are known */
static void planted_bug(const HandshakeHello *hello)
{
    g_autofree char *copy = g_malloc(sizeof(HANDSHAKE_PURPOSE_MIGRATE));

    for (size_t i = 0; i <= strlen(hello->purpose); i++) {
        copy[i] = hello->purpose[i];
    }
}
#endif

static void check_not_understood(const strList *list)
{
    unsigned count = 0;

    for (; list; list = list->next) {
        count++;
    }
    g_assert_cmpuint(count, <=, NOT_UNDERSTOOD_MAX);
}

static void drop_last(uint32List **list)
{
    while ((*list)->next) {
        list = &(*list)->next;
    }
    qapi_free_uint32List(*list);
    *list = NULL;
}

static void drop_last_name(strList **list)
{
    while ((*list)->next) {
        list = &(*list)->next;
    }
    qapi_free_strList(*list);
    *list = NULL;
}

/* What was understood is not lost on the way into a file and back */
static void check_file(const char *text, size_t len)
{
    g_autoptr(HandshakeHello) hello =
        handshake_hello_from_profile(text, len, &error_abort);
    g_autoptr(QDict) first = handshake_hello_to_profile(hello);
    g_autoptr(GString) file = qobject_to_json(QOBJECT(first));
    g_autoptr(HandshakeHello) again =
        handshake_hello_from_profile(file->str, file->len, &error_abort);
    g_autoptr(QDict) second = handshake_hello_to_profile(again);

    fuzz_check_hello(hello);
    g_assert_true(qobject_is_equal(QOBJECT(first), QOBJECT(second)));
}

/* Nor into a frame */
static void check_frame(const HandshakeHello *hello)
{
    g_autofree char *frame = handshake_hello_to_json(hello);
    g_autoptr(HandshakeHello) again =
        handshake_hello_from_json(frame, strlen(frame), NULL, &error_abort);
    g_autoptr(QDict) first = handshake_hello_to_profile(hello);
    g_autoptr(QDict) second = NULL;

    /* It has got grease */
    drop_last(&again->versions);
    drop_last_name(&again->features);
    second = handshake_hello_to_profile(again);
    g_assert_true(qobject_is_equal(QOBJECT(first), QOBJECT(second)));
}

void fuzz_one(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    g_autoptr(strList) not_understood = NULL;
    g_autoptr(Error) err = NULL;
    g_autoptr(HandshakeHello) hello =
        handshake_hello_from_json(text, size, &not_understood, &err);

    check_not_understood(not_understood);
    g_assert(!hello == !!err);
    if (hello) {
        fuzz_check_hello(hello);
#ifdef PLANTED_BUG
        planted_bug(hello);
#endif
        check_file(text, size);
        check_frame(hello);
    }
}
