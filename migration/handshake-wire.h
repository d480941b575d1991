/*
 * Migration handshake: channel header and frames on a QIOChannel
 *
 * Everything here is laid down in docs/interop/migration-handshake.rst.  This
 * layer knows nothing of migration, and has no global state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_WIRE_H
#define QEMU_MIGRATION_HANDSHAKE_WIRE_H

#include "crypto/hash.h"
#include "io/channel.h"
#include "qemu/units.h"
#include "qemu/uuid.h"

/* "QMHS": differs from QEVM, from MultiFDInit and from a TLS record */
#define HANDSHAKE_MAGIC             0x514d4853

/* Sizes in bytes */
#define HANDSHAKE_HEADER_SIZE       64
#define HANDSHAKE_HEADER_MAX        4096
#define HANDSHAKE_PREFIX_SIZE       8
#define HANDSHAKE_NAME_SIZE         16
#define HANDSHAKE_HELLO_MAX         (512 * KiB)
#define HANDSHAKE_FRAME_MAX         (128 * KiB)

/* How many frames of an unknown type a peer may send */
#define HANDSHAKE_UNKNOWN_MAX       16

/* Who does not know the type of a frame with this flag must refuse */
#define HANDSHAKE_FRAME_CRITICAL    0x0001

/* What a channel header may call its channel */
#define HANDSHAKE_CHANNEL_MAIN      "main"
#define HANDSHAKE_CHANNEL_MULTIFD   "multifd"
#define HANDSHAKE_CHANNEL_PREEMPT   "preempt"

typedef enum HandshakeFrameType {
    HANDSHAKE_FRAME_HELLO = 1,
    HANDSHAKE_FRAME_ACCEPT = 2,
    HANDSHAKE_FRAME_REJECT = 3,
    HANDSHAKE_FRAME_COMMIT = 4,
    HANDSHAKE_FRAME_ABORT = 5,
} HandshakeFrameType;

/* The header that every channel begins with, in host order */
typedef struct HandshakeHeader {
    QemuUUID session;                       /* null on the first channel */
    char name[HANDSHAKE_NAME_SIZE + 1];     /* NUL-terminated */
    uint32_t index;
} HandshakeHeader;

/* One conversation's view of its channel */
typedef struct HandshakeWire {
    QIOChannel *ioc;
    QCryptoHash *transcript;    /* NULL once the digest has been taken */
    uint64_t bytes_sent;
    uint64_t bytes_received;
    unsigned unknown_frames;
    bool broken;                /* the channel has ended or failed */
    bool legacy;                /* it began as one without handshake */
} HandshakeWire;

/**
 * handshake_wire_init: begin a conversation on a channel
 * @wire: what to initialize
 * @ioc: the channel, after TLS; a reference is taken
 *
 * Any thread; @wire must be used by one thread or coroutine at a time.
 */
void handshake_wire_init(HandshakeWire *wire, QIOChannel *ioc);

/**
 * handshake_wire_destroy: drop the channel and free what @wire holds
 * @wire: an initialized or zeroed wire
 */
void handshake_wire_destroy(HandshakeWire *wire);

/**
 * handshake_header_put: append a channel header
 * @buf: bytes to be sent
 * @header: what it says; a name of at most HANDSHAKE_NAME_SIZE bytes
 */
void handshake_header_put(GByteArray *buf, const HandshakeHeader *header);

/**
 * handshake_frame_put: append a frame
 * @buf: bytes to be sent
 * @type: the frame's type, a HandshakeFrameType or a grease value
 * @flags: HANDSHAKE_FRAME_*
 * @json: one JSON object as text
 *
 * Fails, and leaves @buf as it was, when @json is longer than a frame of that
 * type may be.
 *
 * Returns: true on success, false with @errp set
 */
bool handshake_frame_put(GByteArray *buf, uint16_t type, uint16_t flags,
                         const char *json, Error **errp);

/**
 * handshake_header_parse: read the fixed part of a channel header
 * @buf: HANDSHAKE_HEADER_SIZE bytes from the peer
 * @header: filled on success
 * @size: set to the header's whole size in bytes, on success
 *
 * Returns: true on success, false with @errp set
 */
bool handshake_header_parse(const uint8_t *buf, HandshakeHeader *header,
                            size_t *size, Error **errp);

/**
 * handshake_wire_send: send bytes that were put together before
 * @wire: the conversation
 * @buf: header and frames; emptied on success
 *
 * Yields in a coroutine, blocks elsewhere.
 *
 * Returns: true on success, false with @errp set
 */
bool coroutine_mixed_fn handshake_wire_send(HandshakeWire *wire,
                                            GByteArray *buf, Error **errp);

/**
 * handshake_wire_read_header: read the peer's channel header, whole
 * @wire: the conversation
 * @header: filled on success
 *
 * A peer that speaks something else is told apart by its first eight bytes;
 * the error names what it seems to be.  Yields in a coroutine, blocks
 * elsewhere.
 *
 * Returns: 1 on success, 0 when the peer left without a byte, -1 with @errp set
 */
int coroutine_mixed_fn handshake_wire_read_header(HandshakeWire *wire,
                                                  HandshakeHeader *header,
                                                  Error **errp);

/**
 * handshake_wire_read_frame: read the next frame of a known type
 * @wire: the conversation
 * @type: set to the frame's HandshakeFrameType
 * @json: set to the frame's text, neither parsed nor validated; the caller
 *        frees it
 *
 * Frames of an unknown type are skipped unless they are critical or too many.
 * Reads not a byte beyond the frame.  Yields in a coroutine, blocks elsewhere.
 *
 * Returns: true on success, false with @errp set
 */
bool coroutine_mixed_fn handshake_wire_read_frame(HandshakeWire *wire,
                                                  HandshakeFrameType *type,
                                                  GString **json,
                                                  Error **errp);

/**
 * handshake_wire_digest: end the transcript
 * @wire: the conversation, right after the verdict went over it
 *
 * Both sides get the same text when they saw the same bytes.
 *
 * Returns: SHA-256 of all bytes so far, as 64 lower-case hexadecimal digits;
 *          the caller frees it
 */
char *handshake_wire_digest(HandshakeWire *wire);

/**
 * handshake_wire_drain: let the peer read what was sent before closing
 * @wire: a conversation whose last word has been sent
 *
 * Closing with unread data resets a TCP connection and takes away from the
 * peer what it has not read yet.  So this ends our direction and reads until
 * the peer closes, a bounded number of bytes.
 */
void coroutine_mixed_fn handshake_wire_drain(HandshakeWire *wire);

/**
 * handshake_frame_type_str: a frame type's name, for messages and traces
 * @type: any value
 *
 * Returns: static text
 */
const char *handshake_frame_type_str(uint16_t type);

#endif
