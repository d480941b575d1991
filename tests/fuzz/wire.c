/*
 * Migration handshake: fuzz the reader of channel headers and frames
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "io/channel-buffer.h"
#include "fuzz.h"

/* What was read is what would be sent, as far as this version knows it */
static void check_header(const HandshakeHeader *header, const uint8_t *data)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    handshake_header_put(buf, header);
    g_assert_cmpuint(buf->len, ==, HANDSHAKE_HEADER_SIZE);
    g_assert(!memcmp(buf->data + 8, data + 8, 36));
}

/* As one that is read without waiting: 1, -1, or 0 if there is not enough */
static int read_pieces(const uint8_t *data, size_t size,
                       HandshakeHeader *header)
{
    g_auto(FuzzError) err = NULL;
    size_t len = 0;
    int missing;

    while ((missing = handshake_header_get(data, len, header, &err)) > 0) {
        g_assert(!err);
        if (missing > size - len) {
            return 0;
        }
        len += missing;
        g_assert_cmpuint(len, <=, HANDSHAKE_HEADER_MAX);
    }
    g_assert((missing < 0) == (err != NULL));
    return missing < 0 ? -1 : 1;
}

static void check_frame(HandshakeFrameType type, const GString *json,
                        const uint8_t *end)
{
    const uint8_t *prefix = end - json->len - HANDSHAKE_PREFIX_SIZE;

    g_assert_cmpint(type, >=, HANDSHAKE_FRAME_HELLO);
    g_assert_cmpint(type, <=, HANDSHAKE_FRAME_ABORT);
    g_assert_cmpuint(json->len, <=, type == HANDSHAKE_FRAME_HELLO
                                    ? HANDSHAKE_HELLO_MAX
                                    : HANDSHAKE_FRAME_MAX);
    g_assert_cmpuint(ldl_be_p(prefix), ==, json->len);
    g_assert_cmpuint(lduw_be_p(prefix + 4), ==, type);
    g_assert(!memcmp(end - json->len, json->str, json->len));
}

static void read_frames(HandshakeWire *wire, QIOChannelBuffer *channel,
                        const uint8_t *data, size_t size, Error **errp)
{
    HandshakeFrameType type;
    GString *json = NULL;

    while (handshake_wire_read_frame(wire, &type, &json, errp)) {
        /* Not a byte too many */
        g_assert_cmpuint(wire->bytes_received, ==, channel->offset);
        g_assert_cmpuint(wire->bytes_received, <=, size);
        g_assert_cmpuint(wire->unknown_frames, <=, HANDSHAKE_UNKNOWN_MAX);
        check_frame(type, json, data + wire->bytes_received);
        g_string_free(json, true);
    }
}

void fuzz_one(const uint8_t *data, size_t size)
{
    QIOChannelBuffer *channel = qio_channel_buffer_new(size);
    g_auto(FuzzError) err = NULL;
    g_autofree char *digest = NULL;
    g_autofree char *expected = NULL;
    HandshakeHeader header;
    HandshakeHeader again;
    HandshakeWire wire;
    int pieces;
    int ret;

    if (size) {
        memcpy(channel->data, data, size);
    }
    channel->usage = size;
    handshake_wire_init(&wire, QIO_CHANNEL(channel));
    ret = handshake_wire_read_header(&wire, &header, &err);
    g_assert((ret < 0) == (err != NULL));
    g_assert((ret == 0) == (size == 0));
    pieces = read_pieces(data, size, &again);
    g_assert_cmpint(pieces, ==, ret > 0 ? 1 : ret && !wire.broken ? -1 : 0);
    if (ret > 0) {
        g_assert_cmpuint(wire.bytes_received, ==, lduw_be_p(data + 6));
        check_header(&header, data);
        check_header(&again, data);
        read_frames(&wire, channel, data, size, &err);
        g_assert(err);
    }
    digest = handshake_wire_digest(&wire);
    qcrypto_hash_digest(QCRYPTO_HASH_ALGO_SHA256, (const char *)data,
                        wire.bytes_received, &expected, &error_abort);
    g_assert_cmpstr(digest, ==, expected);
    handshake_wire_destroy(&wire);
    object_unref(OBJECT(channel));
}
