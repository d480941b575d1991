/*
 * Migration handshake: fuzz the reader of HELLO
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qobject/qdict.h"
#include "fuzz.h"

/* As message.c bounds it */
#define NOT_UNDERSTOOD_MAX  64

#ifdef PLANTED_BUG
/* There is room for all purposes that are known */
static void planted_bug(const MigrationHandshakeHello *hello)
{
    g_autofree char *copy = g_malloc(sizeof(HANDSHAKE_PURPOSE_MIGRATE));

    for (size_t i = 0; i <= strlen(hello->purpose); i++) {
        copy[i] = hello->purpose[i];
    }
}
#endif

/* What was understood is not lost on the way into a file and back */
static void check_file(const MigrationHandshakeHello *hello)
{
    QObject *first = fuzz_hello_object(hello);
    g_autoptr(MigrationHandshakeHello) again =
        handshake_get_profile(first, &error_abort);
    QObject *second = fuzz_hello_object(again);

    g_assert_true(qobject_is_equal(first, second));
    qobject_unref(first);
    qobject_unref(second);
}

/* Nor into a frame */
static void check_frame(const MigrationHandshakeHello *hello)
{
    GByteArray *buf = g_byte_array_new();
    g_autoptr(GString) json = NULL;
    g_autoptr(MigrationHandshakeHello) again = NULL;
    uint32List **version;
    strList **feature;
    QObject *first = fuzz_hello_object(hello);
    QObject *second;

    g_assert_true(handshake_put_hello(buf, hello, &error_abort));
    json = fuzz_payload(buf, HANDSHAKE_FRAME_HELLO);
    again = handshake_get_hello(json, NULL, &error_abort);
    /* It has got grease */
    version = &again->versions;
    while ((*version)->next) {
        version = &(*version)->next;
    }
    g_clear_pointer(version, qapi_free_uint32List);
    feature = &again->features;
    while (*feature && (*feature)->next) {
        feature = &(*feature)->next;
    }
    g_clear_pointer(feature, qapi_free_strList);

    second = fuzz_hello_object(again);
    g_assert_true(qobject_is_equal(first, second));
    qobject_unref(first);
    qobject_unref(second);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    g_autoptr(GString) json = g_string_new_len((const char *)data, size);
    g_autoptr(strList) not_understood = NULL;
    g_auto(FuzzError) err = NULL;
    g_autoptr(MigrationHandshakeHello) hello =
        handshake_get_hello(json, &not_understood, &err);

    g_assert(!hello == !!err);
    g_assert_cmpuint(QAPI_LIST_LENGTH(not_understood), <=, NOT_UNDERSTOOD_MAX);
    for (strList *l = not_understood; l; l = l->next) {
        fuzz_check_text(l->value);
    }
    if (hello) {
        fuzz_check_hello(hello);
#ifdef PLANTED_BUG
        planted_bug(hello);
#endif
        check_file(hello);
        check_frame(hello);
    }
}
