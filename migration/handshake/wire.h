/*
 * Migration handshake: channel header and frames on a QIOChannel
 *
 * Everything here is laid down in docs/interop/migration-handshake.rst.  This
 * layer knows nothing of migration, and has no state of its own.
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
/* On the return path, where a frame has to look like a message */
#define HANDSHAKE_LATE_FRAME_MAX    (16 * KiB)

/* How many frames of an unknown type a peer may send */
#define HANDSHAKE_UNKNOWN_MAX       16

/* As much as a peer may still have on its way when it gets our last frame */
#define HANDSHAKE_DRAIN_MAX         (2 * MiB)

/* A receiver that does not know the type of such a frame must refuse */
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
    /* After COMMIT: on the return path, after the stream, on the return path */
    HANDSHAKE_FRAME_LOADED = 8,
    HANDSHAKE_FRAME_START = 9,
    HANDSHAKE_FRAME_LAST_WORD = 10,
} HandshakeFrameType;

/* The header that every channel begins with, in host order */
typedef struct HandshakeHeader {
    QemuUUID session;                       /* null on the first channel */
    char name[HANDSHAKE_NAME_SIZE + 1];     /* NUL-terminated */
    uint32_t index;
} HandshakeHeader;

/* One side's view of a channel that begins with a header */
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
 * handshake_wire_init: begin on a channel
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
 * handshake_header_get: read a channel header that comes piece by piece
 * @buf: what has come, from its first byte on; room for HANDSHAKE_HEADER_MAX
 * @len: how much that is, in bytes
 * @header: filled once it is complete
 *
 * A peer that speaks something else is recognized by its first eight bytes, and
 * named in @errp.  Any thread.
 *
 * Returns: how many more bytes have to come before it is called again, 0 if
 *          @header is complete, -1 with @errp set
 */
int handshake_header_get(const uint8_t *buf, size_t len,
                         HandshakeHeader *header, Error **errp);

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
 * handshake_frame_type_str: the name of a frame's type
 * @type: any number
 *
 * Returns: its name, or "unknown"
 */
const char *handshake_frame_type_str(uint16_t type);

/**
 * handshake_wire_send: send bytes that were put together before
 * @wire: the channel
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
 * @wire: the channel
 * @header: filled on success
 *
 * Not a byte beyond the header is read.  A peer that speaks something else is
 * recognized by its first eight bytes, and named in @errp.
 *
 * Yields in a coroutine, blocks elsewhere.
 *
 * Returns: 1 on success, 0 if the channel has ended before its first byte,
 *          -1 with @errp set
 */
int coroutine_mixed_fn handshake_wire_read_header(HandshakeWire *wire,
                                                  HandshakeHeader *header,
                                                  Error **errp);

/**
 * handshake_wire_read_frame: read the next frame of a known type
 * @wire: the channel
 * @type: set to the frame's type
 * @json: set to its payload, to be freed by the caller, which is not looked at
 *        here: bytes that end with one more NUL
 *
 * Frames of other types are skipped, a bounded number of them, unless they are
 * critical.  Not a byte beyond the frame is read.
 *
 * Yields in a coroutine, blocks elsewhere.
 *
 * Returns: true on success, false with @errp set
 */
bool coroutine_mixed_fn handshake_wire_read_frame(HandshakeWire *wire,
                                                  HandshakeFrameType *type,
                                                  GString **json,
                                                  Error **errp);

/**
 * handshake_wire_digest: the digest of all that was sent and received
 * @wire: the channel
 *
 * Can be taken once.
 *
 * Returns: SHA-256 as lower-case hexadecimal text, to be freed by the caller
 */
char *handshake_wire_digest(HandshakeWire *wire);

/**
 * handshake_wire_drain: let the peer read what was sent last
 * @wire: the channel, which is of no further use
 *
 * Ends this side's direction, then reads and drops what still comes until the
 * peer closes, or the channel is shut down: closing a socket that has unread
 * bytes would reset the connection, and the peer might lose our last frame.
 *
 * Yields in a coroutine, blocks elsewhere.
 */
void coroutine_mixed_fn handshake_wire_drain(HandshakeWire *wire);

#endif
