/*
 * Migration handshake: the other side of a connection, for the fuzz targets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_TESTS_FUZZ_PEER_H
#define QEMU_TESTS_FUZZ_PEER_H

#include "io/channel-socket.h"
#include "fuzz.h"

typedef struct FuzzPeer {
    QIOChannel *ioc;        /* QEMU's end */
    int fd;                 /* ours; -1 once it is closed */
    bool deaf;              /* does not read */
    bool finished;          /* does not write any more */
    bool tls;               /* has begun with TLS, which is not in @said: */
    GByteArray *said;       /* to QEMU */
    GByteArray *heard;
} FuzzPeer;

/* Connected to a new socket of QEMU's */
FuzzPeer *fuzz_peer_new(void);
/* Connected to a socket that QEMU has opened */
FuzzPeer *fuzz_peer_accept(QIOChannelSocket *ioc);

/* Aborts if anybody in QEMU still has a reference to its end */
void fuzz_peer_free(FuzzPeer *peer);

/* The raw channel below TLS, if that is one with TLS */
QIOChannel *fuzz_raw(QIOChannel *ioc);

/* Whose connection it is, of FuzzPeer */
FuzzPeer *fuzz_peer_find(const GPtrArray *peers, QIOChannel *ioc);

/* What gets a peer through TLS, see tls.c; nothing else begins like it */
#define FUZZ_TLS    0x16
void fuzz_peer_begin_tls(FuzzPeer *peer);

/* What there is no room for is lost */
void fuzz_peer_say(FuzzPeer *peer, const void *data, size_t len);
/* Returns whether there was something */
bool fuzz_peer_listen(FuzzPeer *peer);
void fuzz_peer_finish(FuzzPeer *peer);
void fuzz_peer_close(FuzzPeer *peer);

/* How much QEMU has not read */
size_t fuzz_peer_unread(const FuzzPeer *peer);

/* Builders of what a peer says; they append to @buf */
void fuzz_put_frame(GByteArray *buf, uint16_t type, uint16_t flags,
                    const void *payload, size_t len);
/* Any type, any length, and not always all of it */
void fuzz_put_any_frame(GByteArray *buf, FuzzInput *in);
/* Frames that are skipped, or one too many of them */
void fuzz_put_grease(GByteArray *buf, FuzzInput *in);
void fuzz_put_json(GByteArray *buf, uint16_t type, const char *json);

/**
 * fuzz_get_header: the header that a channel has begun with
 * @said: what one side has said on it
 * @header: set to it
 *
 * Returns: its size; 0 if it is not there, or not complete
 */
size_t fuzz_get_header(const GByteArray *said, HandshakeHeader *header);

/**
 * fuzz_find_frame: the first frame of a type, behind a channel header
 * @said: what one side has said on its main channel
 * @type: the type; 0 for any that is known
 * @after: only look behind this offset, which is the end of another frame
 * @json: set to the payload, if not NULL
 *
 * Returns: the offset of its end; 0 if it is not there, or not complete
 */
size_t fuzz_find_frame(const GByteArray *said, uint16_t type, size_t after,
                       GString **json);

/* What both sides saw: the source's bytes up to HELLO, and up to the verdict */
char *fuzz_digest(const GByteArray *source, size_t hello,
                  const GByteArray *destination, size_t verdict);

#endif
