/*
 * Migration handshake: the other side of a connection, for the fuzz targets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "io/channel-tls.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "peer.h"

static FuzzPeer *peer_new(int *fd)
{
    FuzzPeer *peer = g_new0(FuzzPeer, 1);
    int fds[2];

    g_assert(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    g_assert(!fcntl(fds[1], F_SETFL, O_NONBLOCK));
    *fd = fds[0];
    peer->fd = fds[1];
    peer->said = g_byte_array_new();
    peer->heard = g_byte_array_new();
    return peer;
}

FuzzPeer *fuzz_peer_new(void)
{
    int fd;
    FuzzPeer *peer = peer_new(&fd);

    peer->ioc = QIO_CHANNEL(qio_channel_socket_new_fd(fd, &error_abort));
    return peer;
}

FuzzPeer *fuzz_peer_accept(QIOChannelSocket *ioc)
{
    FuzzPeer *peer = peer_new(&ioc->fd);

    qio_channel_set_feature(QIO_CHANNEL(ioc), QIO_CHANNEL_FEATURE_SHUTDOWN);
    peer->ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    return peer;
}

void fuzz_peer_free(FuzzPeer *peer)
{
    fuzz_peer_close(peer);
    g_assert_cmpuint(OBJECT(peer->ioc)->ref, ==, 1);
    object_unref(OBJECT(peer->ioc));
    g_byte_array_unref(peer->said);
    g_byte_array_unref(peer->heard);
    g_free(peer);
}

QIOChannel *fuzz_raw(QIOChannel *ioc)
{
    Object *tls = object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_TLS);

    return tls ? QIO_CHANNEL_TLS(tls)->master : ioc;
}

FuzzPeer *fuzz_peer_find(const GPtrArray *peers, QIOChannel *ioc)
{
    for (guint i = 0; i < peers->len; i++) {
        FuzzPeer *peer = g_ptr_array_index(peers, i);

        if (peer->ioc == fuzz_raw(ioc)) {
            return peer;
        }
    }
    g_assert_not_reached();
}

void fuzz_peer_begin_tls(FuzzPeer *peer)
{
    static const uint8_t tls = FUZZ_TLS;

    if (peer->fd >= 0 && !peer->tls && !peer->said->len && !peer->finished) {
        peer->tls = send(peer->fd, &tls, 1, MSG_NOSIGNAL) == 1;
    }
}

void fuzz_peer_say(FuzzPeer *peer, const void *data, size_t len)
{
    ssize_t sent = -1;

    if (!peer->said->len && len && *(const uint8_t *)data == FUZZ_TLS) {
        return;
    }
    if (peer->fd >= 0 && !peer->finished) {
        sent = send(peer->fd, data, len, MSG_NOSIGNAL);
    }
    if (sent > 0) {
        g_byte_array_append(peer->said, data, sent);
    }
}

bool fuzz_peer_listen(FuzzPeer *peer)
{
    uint8_t buf[4096];
    bool heard = false;
    ssize_t len;

    while (peer->fd >= 0 && !peer->deaf &&
           (len = recv(peer->fd, buf, sizeof(buf), 0)) > 0) {
        g_byte_array_append(peer->heard, buf, len);
        heard = true;
    }
    return heard;
}

void fuzz_peer_finish(FuzzPeer *peer)
{
    if (peer->fd >= 0) {
        shutdown(peer->fd, SHUT_WR);
        peer->finished = true;
    }
}

void fuzz_peer_close(FuzzPeer *peer)
{
    if (peer->fd >= 0) {
        close(peer->fd);
        peer->fd = -1;
    }
}

size_t fuzz_peer_unread(const FuzzPeer *peer)
{
    int unread;

    g_assert(!ioctl(QIO_CHANNEL_SOCKET(peer->ioc)->fd, FIONREAD, &unread));
    return unread;
}

void fuzz_put_frame(GByteArray *buf, uint16_t type, uint16_t flags,
                    const void *payload, size_t len)
{
    uint8_t prefix[HANDSHAKE_PREFIX_SIZE];

    stl_be_p(prefix, len);
    stw_be_p(prefix + 4, type);
    stw_be_p(prefix + 6, flags);
    g_byte_array_append(buf, prefix, sizeof(prefix));
    g_byte_array_append(buf, payload, len);
}

void fuzz_put_any_frame(GByteArray *buf, FuzzInput *in)
{
    const uint16_t type = fuzz_u16(in);
    const uint16_t flags = fuzz_byte(in);
    const uint32_t len = fuzz_u16(in) << (flags >> 6);
    const uint32_t part = flags & 8 ? len / 2 : len;
    g_autofree uint8_t *payload = g_malloc(len + 1);

    memset(payload, fuzz_byte(in), len);
    fuzz_put_frame(buf, type, flags & 1, payload, len);
    g_byte_array_set_size(buf, buf->len - (len - part));
}

void fuzz_put_grease(GByteArray *buf, FuzzInput *in)
{
    for (int n = fuzz_byte(in) % 20; n >= 0; n--) {
        handshake_put_grease(buf);
    }
}

void fuzz_put_json(GByteArray *buf, uint16_t type, const char *json)
{
    fuzz_put_frame(buf, type, HANDSHAKE_FRAME_CRITICAL, json, strlen(json));
}

size_t fuzz_get_header(const GByteArray *said, HandshakeHeader *header)
{
    size_t size;

    if (said->len < HANDSHAKE_HEADER_SIZE) {
        return 0;
    }
    size = lduw_be_p(said->data + 6);
    memset(header, 0, sizeof(*header));
    memcpy(&header->session, said->data + 8, sizeof(header->session));
    memcpy(header->name, said->data + 24, HANDSHAKE_NAME_SIZE);
    header->index = ldl_be_p(said->data + 40);
    return size <= said->len ? size : 0;
}

size_t fuzz_find_frame(const GByteArray *said, uint16_t type, size_t after,
                       GString **json)
{
    size_t at = after;

    if (!at) {
        if (said->len < HANDSHAKE_PREFIX_SIZE) {
            return 0;
        }
        at = lduw_be_p(said->data + 6);
    }
    while (at + HANDSHAKE_PREFIX_SIZE <= said->len) {
        const uint8_t *prefix = said->data + at;
        const uint32_t len = ldl_be_p(prefix);
        const uint16_t kind = lduw_be_p(prefix + 4);

        at += HANDSHAKE_PREFIX_SIZE;
        if (len > said->len - at) {
            return 0;
        }
        at += len;
        if (type ? kind == type : kind >= HANDSHAKE_FRAME_HELLO &&
                                  kind <= HANDSHAKE_FRAME_ABORT) {
            if (json) {
                *json = g_string_new_len((const char *)said->data + at - len,
                                         len);
            }
            return at;
        }
    }
    return 0;
}

char *fuzz_digest(const GByteArray *source, size_t hello,
                  const GByteArray *destination, size_t verdict)
{
    struct iovec iov[] = {
        { source->data, hello },
        { destination->data, verdict },
    };
    char *digest = NULL;

    qcrypto_hash_digestv(QCRYPTO_HASH_ALGO_SHA256, iov, ARRAY_SIZE(iov),
                         &digest, &error_abort);
    return digest;
}
