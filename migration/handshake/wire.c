/*
 * Migration handshake: channel header and frames on a QIOChannel
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qapi/error.h"
#include "trace.h"
#include "wire.h"

/* Layout of the channel header, in bytes from its start */
#define HEADER_MAGIC        0
#define HEADER_LENGTH       6
#define HEADER_SESSION      8
#define HEADER_NAME         24
#define HEADER_INDEX        40

/* Layout of a frame's prefix */
#define PREFIX_LENGTH       0
#define PREFIX_TYPE         4
#define PREFIX_FLAGS        6

void handshake_wire_init(HandshakeWire *wire, QIOChannel *ioc)
{
    *wire = (HandshakeWire) {
        .ioc = QIO_CHANNEL(object_ref(OBJECT(ioc))),
        .transcript = qcrypto_hash_new(QCRYPTO_HASH_ALGO_SHA256, &error_abort),
    };
}

void handshake_wire_destroy(HandshakeWire *wire)
{
    g_clear_pointer(&wire->transcript, qcrypto_hash_free);
    if (wire->ioc) {
        object_unref(OBJECT(wire->ioc));
        wire->ioc = NULL;
    }
}

const char *handshake_frame_type_str(uint16_t type)
{
    switch (type) {
    case HANDSHAKE_FRAME_HELLO:
        return "HELLO";
    case HANDSHAKE_FRAME_ACCEPT:
        return "ACCEPT";
    case HANDSHAKE_FRAME_REJECT:
        return "REJECT";
    case HANDSHAKE_FRAME_COMMIT:
        return "COMMIT";
    case HANDSHAKE_FRAME_ABORT:
        return "ABORT";
    case HANDSHAKE_FRAME_LOADED:
        return "LOADED";
    case HANDSHAKE_FRAME_START:
        return "START";
    case HANDSHAKE_FRAME_LAST_WORD:
        return "LAST WORD";
    default:
        return "unknown";
    }
}

static size_t frame_max(uint16_t type)
{
    switch (type) {
    case HANDSHAKE_FRAME_HELLO:
        return HANDSHAKE_HELLO_MAX;
    case HANDSHAKE_FRAME_LOADED:
    case HANDSHAKE_FRAME_LAST_WORD:
        return HANDSHAKE_LATE_FRAME_MAX;
    default:
        return HANDSHAKE_FRAME_MAX;
    }
}

void handshake_header_put(GByteArray *buf, const HandshakeHeader *header)
{
    uint8_t raw[HANDSHAKE_HEADER_SIZE] = { 0 };

    stl_be_p(raw + HEADER_MAGIC, HANDSHAKE_MAGIC);
    stw_be_p(raw + HEADER_LENGTH, sizeof(raw));
    memcpy(raw + HEADER_SESSION, header->session.data,
           sizeof(header->session.data));
    memcpy(raw + HEADER_NAME, header->name,
           strnlen(header->name, HANDSHAKE_NAME_SIZE));
    stl_be_p(raw + HEADER_INDEX, header->index);
    g_byte_array_append(buf, raw, sizeof(raw));
}

bool handshake_frame_put(GByteArray *buf, uint16_t type, uint16_t flags,
                         const char *json, Error **errp)
{
    uint8_t prefix[HANDSHAKE_PREFIX_SIZE];
    size_t length = strlen(json);

    if (length > frame_max(type)) {
        error_setg(errp, "migration handshake: %s of %zu bytes is too long",
                   handshake_frame_type_str(type), length);
        return false;
    }
    stl_be_p(prefix + PREFIX_LENGTH, length);
    stw_be_p(prefix + PREFIX_TYPE, type);
    stw_be_p(prefix + PREFIX_FLAGS, flags);
    g_byte_array_append(buf, prefix, sizeof(prefix));
    g_byte_array_append(buf, (const uint8_t *)json, length);
    return true;
}

static bool is_legacy_stream(const uint8_t *buf)
{
    return !memcmp(buf, "QEVM", 4);
}

static bool is_legacy_multifd(const uint8_t *buf)
{
    return ldl_be_p(buf) == 0x11223344;
}

/* What a peer seems to speak that does not begin with our magic */
static const char *describe_bytes(const uint8_t *buf)
{
    if (is_legacy_stream(buf)) {
        return "a migration stream without handshake; "
               "use channel type 'handshake' on the source";
    }
    if (is_legacy_multifd(buf)) {
        return "a multifd channel of a migration without handshake; "
               "use channel type 'handshake' on the source";
    }
    if (buf[0] == 0x16 && buf[1] == 0x03) {
        return "a TLS client hello; set 'tls-creds' on both sides or on none";
    }
    if (buf[0] == 0x15 && buf[1] == 0x03) {
        return "a TLS alert; set 'tls-creds' on both sides or on none";
    }
    if (!memcmp(buf, "SSH-", 4)) {
        return "SSH";
    }
    if (!memcmp(buf, "HTTP", 4) || !memcmp(buf, "GET ", 4) ||
        !memcmp(buf, "POST", 4) || !memcmp(buf, "HEAD", 4)) {
        return "HTTP";
    }
    return "something else";
}

/* The first bytes alone: who speaks something else may wait for an answer */
static bool header_parse_start(const uint8_t *buf, size_t *size, Error **errp)
{
    size_t length = lduw_be_p(buf + HEADER_LENGTH);

    if (ldl_be_p(buf + HEADER_MAGIC) != HANDSHAKE_MAGIC) {
        error_setg(errp, "not a migration handshake: the peer sent %s",
                   describe_bytes(buf));
        return false;
    }
    if (length < HANDSHAKE_HEADER_SIZE || length > HANDSHAKE_HEADER_MAX) {
        error_setg(errp, "migration handshake: channel header of %zu bytes, "
                   "expected %d to %d", length,
                   HANDSHAKE_HEADER_SIZE, HANDSHAKE_HEADER_MAX);
        return false;
    }
    *size = length;
    return true;
}

static bool header_parse(const uint8_t *buf, HandshakeHeader *header,
                         Error **errp)
{
    const char *name = (const char *)buf + HEADER_NAME;
    size_t len = strnlen(name, HANDSHAKE_NAME_SIZE);

    for (size_t i = 0; i < HANDSHAKE_NAME_SIZE; i++) {
        if (i < len ? !g_ascii_isgraph(name[i]) : name[i] != '\0') {
            len = 0;
        }
    }
    if (!len) {
        error_setg(errp, "migration handshake: malformed channel name");
        return false;
    }

    memcpy(header->session.data, buf + HEADER_SESSION,
           sizeof(header->session.data));
    memset(header->name, 0, sizeof(header->name));
    memcpy(header->name, name, len);
    header->index = ldl_be_p(buf + HEADER_INDEX);
    return true;
}

static void transcript_add(HandshakeWire *wire, const void *buf, size_t len)
{
    if (wire->transcript) {
        qcrypto_hash_update(wire->transcript, buf, len, &error_abort);
    }
}

bool coroutine_mixed_fn handshake_wire_send(HandshakeWire *wire,
                                            GByteArray *buf, Error **errp)
{
    if (qio_channel_write_all(wire->ioc, (const char *)buf->data, buf->len,
                              errp) < 0) {
        return false;
    }
    wire->bytes_sent += buf->len;
    transcript_add(wire, buf->data, buf->len);
    g_byte_array_set_size(buf, 0);
    return true;
}

/* As qio_channel_read_all_eof(), accounted for */
static int coroutine_mixed_fn wire_read(HandshakeWire *wire, void *buf,
                                        size_t len, Error **errp)
{
    int ret = qio_channel_read_all_eof(wire->ioc, buf, len, errp);

    if (ret > 0) {
        wire->bytes_received += len;
        transcript_add(wire, buf, len);
    } else {
        wire->broken = true;
    }
    return ret;
}

/* Like wire_read(), where an end is an error like any other */
static bool coroutine_mixed_fn wire_read_all(HandshakeWire *wire, void *buf,
                                             size_t len, Error **errp)
{
    int ret = len ? wire_read(wire, buf, len, errp) : 1;

    if (ret == 0) {
        error_setg(errp, "the peer closed the connection during the "
                   "migration handshake");
    }
    return ret > 0;
}

int handshake_header_get(const uint8_t *buf, size_t len,
                         HandshakeHeader *header, Error **errp)
{
    size_t size;

    if (len < HANDSHAKE_PREFIX_SIZE) {
        return HANDSHAKE_PREFIX_SIZE - len;
    }
    if (!header_parse_start(buf, &size, errp)) {
        return -1;
    }
    if (len < size) {
        return size - len;
    }
    return header_parse(buf, header, errp) ? 0 : -1;
}

int coroutine_mixed_fn handshake_wire_read_header(HandshakeWire *wire,
                                                  HandshakeHeader *header,
                                                  Error **errp)
{
    uint8_t buf[HANDSHAKE_HEADER_MAX];
    size_t len = HANDSHAKE_PREFIX_SIZE;
    int missing, ret;

    ret = wire_read(wire, buf, len, errp);
    if (ret <= 0) {
        return ret;
    }
    wire->legacy = is_legacy_stream(buf) || is_legacy_multifd(buf);
    while ((missing = handshake_header_get(buf, len, header, errp)) > 0) {
        if (!wire_read_all(wire, buf + len, missing, errp)) {
            return -1;
        }
        len += missing;
    }
    return missing ? -1 : 1;
}

/* A LAST WORD comes later, on the return path; here it is skipped */
static bool frame_type_known(uint16_t type)
{
    return type >= HANDSHAKE_FRAME_HELLO && type <= HANDSHAKE_FRAME_ABORT;
}

bool coroutine_mixed_fn handshake_wire_read_frame(HandshakeWire *wire,
                                                  HandshakeFrameType *type,
                                                  GString **json,
                                                  Error **errp)
{
    for (;;) {
        uint8_t prefix[HANDSHAKE_PREFIX_SIZE];
        g_autofree char *text = NULL;
        uint32_t length;
        uint16_t flags;

        if (!wire_read_all(wire, prefix, sizeof(prefix), errp)) {
            return false;
        }
        length = ldl_be_p(prefix + PREFIX_LENGTH);
        *type = lduw_be_p(prefix + PREFIX_TYPE);
        flags = lduw_be_p(prefix + PREFIX_FLAGS);

        if (length > frame_max(*type)) {
            error_setg(errp, "migration handshake: frame of type 0x%04x (%s) "
                       "has %" PRIu32 " bytes, at most %zu are allowed", *type,
                       handshake_frame_type_str(*type), length,
                       frame_max(*type));
            return false;
        }
        if (!frame_type_known(*type)) {
            if (flags & HANDSHAKE_FRAME_CRITICAL) {
                error_setg(errp, "migration handshake: frame of type 0x%04x is "
                           "critical and not known here", *type);
                return false;
            }
            if (++wire->unknown_frames > HANDSHAKE_UNKNOWN_MAX) {
                error_setg(errp, "migration handshake: more than %d frames of "
                           "unknown types", HANDSHAKE_UNKNOWN_MAX);
                return false;
            }
        }

        text = g_malloc(length + 1);
        if (!wire_read_all(wire, text, length, errp)) {
            return false;
        }
        trace_migration_handshake_frame_received(
            wire->ioc, handshake_frame_type_str(*type), *type, length);
        if (frame_type_known(*type)) {
            *json = g_string_new_len(text, length);
            return true;
        }
    }
}

char *handshake_wire_digest(HandshakeWire *wire)
{
    char *digest = NULL;

    qcrypto_hash_finalize_digest(wire->transcript, &digest, &error_abort);
    g_clear_pointer(&wire->transcript, qcrypto_hash_free);
    return digest;
}

void coroutine_mixed_fn handshake_wire_drain(HandshakeWire *wire)
{
    g_autofree char *buf = g_malloc(4 * KiB);
    size_t total = 0;

    if (qio_channel_shutdown(wire->ioc, QIO_CHANNEL_SHUTDOWN_WRITE,
                             NULL) < 0) {
        return;
    }
    while (total < HANDSHAKE_DRAIN_MAX) {
        ssize_t len = qio_channel_read(wire->ioc, buf, 4 * KiB, NULL);

        if (len == QIO_CHANNEL_ERR_BLOCK && qemu_in_coroutine()) {
            qio_channel_yield(wire->ioc, G_IO_IN);
        } else if (len <= 0) {
            return;
        } else {
            total += len;
        }
    }
}
