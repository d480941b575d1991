/*
 * Migration handshake: opening channels, and their places in a session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qapi/qapi-types-sockets.h"
#include "crypto/tlscreds.h"
#include "io/channel-null.h"
#include "io/channel-socket.h"
#include "qom/object_interfaces.h"
#include "migration/handshake/channel.h"
#include "migration/options.h"
#include "migration/tls.h"

#define MULTIFD HANDSHAKE_CHANNEL_MULTIFD
#define PREEMPT HANDSHAKE_CHANNEL_PREEMPT

/* More multifd channels than this cannot be asked for */
#define MULTIFD_MAX 255

static const QemuUUID session = {
    .data = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 }
};

/* What the rest of migration would say */
static bool use_tls;
static bool use_zero_copy;
static QCryptoTLSCreds *client_creds;
static char *tls_hostname;

bool migrate_tls(void)
{
    return use_tls;
}

bool migrate_zero_copy_send(void)
{
    return use_zero_copy;
}

QIOChannelTLS *migration_tls_client_create_for(QIOChannel *ioc,
                                               const char *hostname,
                                               Error **errp)
{
    if (!client_creds) {
        error_setg(errp, "No TLS credentials with id 'tls0'");
        return NULL;
    }
    g_free(tls_hostname);
    tls_hostname = g_strdup(hostname);
    return qio_channel_tls_new_client(ioc, client_creds, hostname, errp);
}

static gboolean stuck(gpointer opaque)
{
    g_error("still waiting for: %s", (const char *)opaque);
    return G_SOURCE_REMOVE;
}

#define WAIT_FOR(condition)                                             \
    do {                                                                \
        guint timer = g_timeout_add_seconds(60, stuck,                  \
                                            (gpointer)#condition);      \
        while (!(condition)) {                                          \
            main_loop_wait(false);                                      \
        }                                                               \
        g_source_remove(timer);                                         \
    } while (0)

/* Whatever is ready runs, and nothing waits */
static void run_ready(void)
{
    for (int i = 0; i < 10; i++) {
        main_loop_wait(true);
    }
}

/* A channel that is opened in a coroutine */
typedef struct Opening {
    HandshakeChannel *channel;
    SocketAddress *addr;
    QIOChannel *ioc;
    bool greet;
    unsigned interrupt_at;      /* the step that it is interrupted in, or 0 */
    unsigned steps;
    bool done;
    bool ok;
    Error *err;
} Opening;

static void opening_step(void *opaque)
{
    Opening *opening = opaque;

    g_assert_false(opening->done);
    if (++opening->steps == opening->interrupt_at) {
        handshake_channel_interrupt(opening->channel);
    }
}

static void coroutine_fn opening_co(void *opaque)
{
    Opening *opening = opaque;

    opening->ok =
        handshake_channel_connect(opening->channel, opening->addr,
                                  opening->ioc, &opening->err) &&
        (!opening->greet ||
         handshake_channel_greet(opening->channel, &session, &opening->err));
    opening->done = true;
}

static void opening_init(Opening *opening, const char *name, uint32_t index)
{
    memset(opening, 0, sizeof(*opening));
    opening->channel = handshake_channel_new(name, index, opening_step,
                                             opening);
}

static void opening_run(Opening *opening)
{
    qemu_coroutine_enter(qemu_coroutine_create(opening_co, opening));
}

/* It must end with an error that has @why in it; NULL: well */
static void opening_end(Opening *opening, const char *why)
{
    WAIT_FOR(opening->done);
    g_assert_cmpint(opening->ok, ==, !opening->err);
    if (!why) {
        if (opening->err) {
            g_error("%s", error_get_pretty(opening->err));
        }
    } else if (!opening->err ||
               !strstr(error_get_pretty(opening->err), why)) {
        g_error("expected '%s' in '%s'", why,
                opening->err ? error_get_pretty(opening->err) : "success");
    }
    error_free(opening->err);
    handshake_channel_free(opening->channel);
    object_unref(OBJECT(opening->ioc));
    qapi_free_SocketAddress(opening->addr);
}

/* The other end of a channel that is connected already */
static QIOChannel *opening_pair(Opening *opening)
{
    int fds[2];

    g_assert_cmpint(socketpair(PF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    opening->ioc = QIO_CHANNEL(qio_channel_socket_new_fd(fds[0],
                                                         &error_abort));
    return QIO_CHANNEL(qio_channel_socket_new_fd(fds[1], &error_abort));
}

static void assert_closed(QIOChannel *ioc)
{
    char byte;

    qio_channel_set_blocking(ioc, false, &error_abort);
    WAIT_FOR(qio_channel_read(ioc, &byte, 1, NULL) != QIO_CHANNEL_ERR_BLOCK);
    g_assert_cmpint(qio_channel_read(ioc, &byte, 1, NULL), ==, 0);
}

/* Listens where all connections but one have to wait */
typedef struct Listener {
    char *dir;
    char *path;
    int fd;
    int filler;                 /* takes the only place */
} Listener;

static void listener_init(Listener *listener, Opening *opening)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    listener->dir = g_dir_make_tmp("qemu-test-handshake.XXXXXX", NULL);
    listener->path = g_build_filename(listener->dir, "socket", NULL);
    pstrcpy(addr.sun_path, sizeof(addr.sun_path), listener->path);
    listener->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(bind(listener->fd, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    g_assert_cmpint(listen(listener->fd, 0), ==, 0);
    listener->filler = unix_connect(listener->path, &error_abort);

    opening->addr = g_new0(SocketAddress, 1);
    opening->addr->type = SOCKET_ADDRESS_TYPE_UNIX;
    opening->addr->u.q_unix.path = g_strdup(listener->path);
}

/* Waits for the connection that is opened, which can only come now */
static QIOChannel *listener_accept(Listener *listener)
{
    int filled = accept(listener->fd, NULL, NULL);
    int fd = accept(listener->fd, NULL, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(filled);
    return QIO_CHANNEL(qio_channel_socket_new_fd(fd, &error_abort));
}

static void listener_end(Listener *listener)
{
    close(listener->filler);
    close(listener->fd);
    unlink(listener->path);
    rmdir(listener->dir);
    g_free(listener->path);
    g_free(listener->dir);
}

static HandshakeHeader header_for(const char *name, uint32_t index)
{
    HandshakeHeader header = { .session = session, .index = index };

    g_assert_cmpuint(strlen(name), <=, HANDSHAKE_NAME_SIZE);
    pstrcpy(header.name, sizeof(header.name), name);
    return header;
}

/* The peer gets the header of the channel that is opened, and nothing else */
static void read_header(QIOChannel *peer, const char *name, uint32_t index)
{
    HandshakeWire wire;
    HandshakeHeader header;
    char byte;

    handshake_wire_init(&wire, peer);
    g_assert_cmpint(handshake_wire_read_header(&wire, &header, &error_abort),
                    ==, 1);
    handshake_wire_destroy(&wire);
    g_assert_cmpstr(header.name, ==, name);
    g_assert_cmpuint(header.index, ==, index);
    g_assert_true(qemu_uuid_is_equal(&header.session, &session));
    qio_channel_set_blocking(peer, false, &error_abort);
    g_assert_cmpint(qio_channel_read(peer, &byte, 1, NULL), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    qio_channel_set_blocking(peer, true, &error_abort);
}

static GByteArray *answer_for(const HandshakeHeader *header)
{
    GByteArray *buf = g_byte_array_new();

    handshake_header_put(buf, header);
    return buf;
}

static void peer_write(QIOChannel *peer, const void *buf, size_t len)
{
    g_assert_cmpint(qio_channel_write_all(peer, buf, len, &error_abort), ==, 0);
}

/* A greeting that gets @len bytes at @buf, and ends with @why */
static void greet(const void *buf, size_t len, const char *why)
{
    Opening opening;
    QIOChannel *peer;

    opening_init(&opening, MULTIFD, 3);
    opening.greet = true;
    peer = opening_pair(&opening);
    opening_run(&opening);
    read_header(peer, MULTIFD, 3);
    g_assert_false(opening.done);
    if (len) {
        peer_write(peer, buf, len);
    }
    qio_channel_shutdown(peer, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    WAIT_FOR(opening.done);
    g_assert_cmpuint(opening.steps, ==, why ? 1 : 2);
    opening_end(&opening, why);
    assert_closed(peer);
    object_unref(OBJECT(peer));
}

static void greet_header(HandshakeHeader header, const char *why)
{
    g_autoptr(GByteArray) buf = answer_for(&header);

    greet(buf->data, buf->len, why);
}

static void test_greet(void)
{
    greet_header(header_for(MULTIFD, 3), NULL);
}

static void test_greet_wrong(void)
{
    HandshakeHeader header;

    greet_header(header_for(MULTIFD, 2), "the destination "
                 "took it for channel 'multifd' 2");
    greet_header(header_for(MULTIFD, 3 + 256), "for channel 'multifd' 259");
    greet_header(header_for(PREEMPT, 3), "for channel 'preempt' 3");
    greet_header(header_for("multifd3", 3), "for channel 'multifd3' 3");

    header = header_for(MULTIFD, 3);
    header.session.data[15]++;
    greet_header(header, "the destination took it for one "
                 "of session 01020304-0506-0708-090a-0b0c0d0e0f11");
    memset(&header.session, 0, sizeof(header.session));
    greet_header(header, "session 00000000-0000-0000-0000-000000000000");
}

static void test_greet_garbage(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *why;
    } answers[] = {
        { "", 0, "the destination closed it" },
        { "QMHS", 4, "Unexpected end-of-file" },
        { "SSH-2.0-OpenSSH_9.2\r\n", 21, "the peer sent SSH" },
        { "\x15\x03\x03\0\2\2\50\0", 8, "a TLS alert; set 'tls-creds' on both "
          "sides or on none" },
        { "QMHS\0\0\0\x3f", 8, "channel header of 63 bytes" },
        { "QMHS\0\0\x10\1", 8, "channel header of 4097 bytes" },
    };

    for (int i = 0; i < ARRAY_SIZE(answers); i++) {
        greet(answers[i].bytes, answers[i].len, answers[i].why);
    }
}

/* Each byte alone; and what follows the answer belongs to migration */
static void test_greet_bytes(void)
{
    HandshakeHeader header = header_for(PREEMPT, 0);
    g_autoptr(GByteArray) buf = answer_for(&header);
    char next[4] = { 0 };
    Opening opening;
    QIOChannel *peer;

    opening_init(&opening, PREEMPT, 0);
    opening.greet = true;
    peer = opening_pair(&opening);
    opening_run(&opening);
    read_header(peer, PREEMPT, 0);
    for (int i = 0; i < buf->len - 1; i++) {
        peer_write(peer, buf->data + i, 1);
        run_ready();
        g_assert_false(opening.done);
    }
    peer_write(peer, buf->data + buf->len - 1, 1);
    peer_write(peer, "next", 4);
    WAIT_FOR(opening.done);
    g_assert_cmpint(qio_channel_read(handshake_channel_ioc(opening.channel),
                                     next, sizeof(next), &error_abort), ==, 4);
    g_assert_cmpint(memcmp(next, "next", 4), ==, 0);
    opening_end(&opening, NULL);
    object_unref(OBJECT(peer));
}

/* Later versions may have more to say */
static void test_greet_longer(void)
{
    HandshakeHeader header = header_for(MULTIFD, 3);
    g_autoptr(GByteArray) buf = answer_for(&header);

    g_byte_array_set_size(buf, HANDSHAKE_HEADER_MAX);
    memset(buf->data + HANDSHAKE_HEADER_SIZE, 0xff,
           HANDSHAKE_HEADER_MAX - HANDSHAKE_HEADER_SIZE);
    stw_be_p(buf->data + 6, HANDSHAKE_HEADER_MAX);
    greet(buf->data, buf->len, NULL);
    /* But they have to say it */
    greet(buf->data, buf->len - 1, "Unexpected end-of-file");
}

/* What is ready outlives what has opened it */
static void test_greet_taken(void)
{
    HandshakeHeader header = header_for(MULTIFD, 3);
    g_autoptr(GByteArray) buf = answer_for(&header);
    g_autoptr(HandshakePlaces) places =
        handshake_places_new(&session, 4, false);
    Opening opening;
    QIOChannel *peer, *ioc;
    char byte;

    opening_init(&opening, MULTIFD, 3);
    opening.greet = true;
    peer = opening_pair(&opening);
    opening_run(&opening);
    peer_write(peer, buf->data, buf->len);
    WAIT_FOR(opening.done);
    ioc = handshake_channel_ioc(opening.channel);
    g_assert_true(handshake_places_add(places, &header, ioc, &error_abort));
    opening_end(&opening, NULL);

    g_assert_true(handshake_places_take(places, MULTIFD, 3) == ioc);
    /* It does not block before it is told to */
    g_assert_cmpint(qio_channel_read(ioc, &byte, 1, NULL), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    object_unref(OBJECT(ioc));
    object_unref(OBJECT(peer));
}

static void test_greet_silence(void)
{
    Opening opening;
    QIOChannel *peer;

    for (int times = 1; times <= 2; times++) {
        opening_init(&opening, MULTIFD, 3);
        opening.greet = true;
        peer = opening_pair(&opening);
        opening_run(&opening);
        read_header(peer, MULTIFD, 3);
        run_ready();
        g_assert_false(opening.done);
        for (int i = 0; i < times; i++) {
            handshake_channel_interrupt(opening.channel);
            g_assert_false(opening.done);
        }
        WAIT_FOR(opening.done);
        /* Whoever comes late does no harm */
        handshake_channel_interrupt(opening.channel);
        opening_end(&opening, "no answer to its header");
        assert_closed(peer);
        object_unref(OBJECT(peer));
    }
}

/* The peer may not even read */
static void test_greet_full(void)
{
    g_autofree char *buf = g_malloc0(4096);
    Opening opening;
    QIOChannel *peer;

    opening_init(&opening, MULTIFD, 3);
    opening.greet = true;
    peer = opening_pair(&opening);
    qio_channel_set_blocking(opening.ioc, false, &error_abort);
    while (qio_channel_write(opening.ioc, buf, 4096, &error_abort) > 0) {
        /* until there is no room */
    }
    opening_run(&opening);
    run_ready();
    g_assert_false(opening.done);
    handshake_channel_interrupt(opening.channel);
    opening_end(&opening, "no answer to its header");
    object_unref(OBJECT(peer));
}

/* An interruption is not lost, whenever it comes */
static void test_interrupt_early(void)
{
    HandshakeHeader header = header_for(MULTIFD, 3);
    g_autoptr(GByteArray) buf = answer_for(&header);
    Opening opening;
    QIOChannel *peer;
    Listener listener;

    /* Before it has begun, with a connection and without */
    opening_init(&opening, MULTIFD, 3);
    peer = opening_pair(&opening);
    handshake_channel_interrupt(opening.channel);
    opening_run(&opening);
    g_assert_true(opening.done);
    g_assert_cmpuint(opening.steps, ==, 0);
    opening_end(&opening, "the destination has not taken the connection");
    assert_closed(peer);
    object_unref(OBJECT(peer));

    opening_init(&opening, MULTIFD, 3);
    listener_init(&listener, &opening);
    handshake_channel_interrupt(opening.channel);
    opening_run(&opening);
    g_assert_true(opening.done);
    opening_end(&opening, "the destination has not taken the connection");
    listener_end(&listener);

    /* In each of its steps */
    for (unsigned i = 1; i <= 2; i++) {
        opening_init(&opening, MULTIFD, 3);
        opening.greet = true;
        opening.interrupt_at = i;
        peer = opening_pair(&opening);
        peer_write(peer, buf->data, buf->len);
        opening_run(&opening);
        WAIT_FOR(opening.done);
        g_assert_cmpuint(opening.steps, ==, i);
        opening_end(&opening, i == 1 ? "has not taken the connection"
                                     : "no answer to its header");
        object_unref(OBJECT(peer));
    }

    /* Before anybody has used it */
    opening_init(&opening, "main", 0);
    peer = opening_pair(&opening);
    opening_run(&opening);
    g_assert_true(opening.done);
    handshake_channel_interrupt(opening.channel);
    assert_closed(peer);
    opening_end(&opening, NULL);
    object_unref(OBJECT(peer));

    /* Before it has begun, and it is freed without */
    opening_init(&opening, "main", 0);
    handshake_channel_interrupt(opening.channel);
    handshake_channel_free(opening.channel);
    handshake_channel_free(NULL);
}

static void test_connect(void)
{
    Opening opening;
    Listener listener;
    QIOChannel *peer;

    opening_init(&opening, "main", 0);
    listener_init(&listener, &opening);
    opening_run(&opening);
    run_ready();
    g_assert_false(opening.done);
    peer = listener_accept(&listener);
    WAIT_FOR(opening.done);
    g_assert_cmpuint(opening.steps, ==, 1);
    peer_write(peer, "x", 1);
    opening_end(&opening, NULL);
    object_unref(OBJECT(peer));
    listener_end(&listener);
}

static void inet_address(Opening *opening, int fd)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(addr);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&addr, &len), ==, 0);
    opening->addr = g_new0(SocketAddress, 1);
    opening->addr->type = SOCKET_ADDRESS_TYPE_INET;
    opening->addr->u.inet.host = g_strdup("127.0.0.1");
    opening->addr->u.inet.port = g_strdup_printf("%d", ntohs(addr.sin_port));
}

static void test_connect_refused(void)
{
    /* Nobody else gets the port, and nobody listens on it */
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    Opening opening;

    opening_init(&opening, "main", 0);
    inet_address(&opening, fd);
    opening_run(&opening);
    WAIT_FOR(opening.done);
    g_assert_cmpuint(opening.steps, ==, 0);
    /* It is known what it was */
    handshake_channel_interrupt(opening.channel);
    opening_end(&opening, "Connection refused");
    close(fd);
}

/* Hosts differ in what has it */
static void test_connect_zero_copy(void)
{
    bool has_it = false;

    for (int i = 0; i < 2; i++) {
        Opening opening;
        Listener listener;
        QIOChannel *peer;

        use_zero_copy = i;
        opening_init(&opening, MULTIFD, 0);
        listener_init(&listener, &opening);
        opening_run(&opening);
        peer = listener_accept(&listener);
        WAIT_FOR(opening.done);
        if (!use_zero_copy) {
            has_it = qio_channel_has_feature(
                handshake_channel_ioc(opening.channel),
                QIO_CHANNEL_FEATURE_WRITE_ZERO_COPY);
        }
        opening_end(&opening, !use_zero_copy || has_it ? NULL
                    : "Zero copy send feature not detected in host kernel");
        assert_closed(peer);
        object_unref(OBJECT(peer));
        listener_end(&listener);
    }
    use_zero_copy = false;
}

/* Nobody waits for connect(), and its late success only closes its socket */
static void test_connect_interrupt(void)
{
    Opening opening;
    Listener listener;
    QIOChannel *peer;

    for (int times = 1; times <= 2; times++) {
        opening_init(&opening, "main", 0);
        listener_init(&listener, &opening);
        opening_run(&opening);
        run_ready();
        for (int i = 0; i < times; i++) {
            handshake_channel_interrupt(opening.channel);
            g_assert_false(opening.done);
        }
        /* connect() still waits for its place */
        WAIT_FOR(opening.done);
        g_assert_cmpuint(opening.steps, ==, 0);
        opening_end(&opening, "the destination has not taken the connection");
        peer = listener_accept(&listener);
        assert_closed(peer);
        object_unref(OBJECT(peer));
        listener_end(&listener);
    }
}

/* Nor does its success that comes while the interruption is on its way */
static void test_connect_interrupt_late(void)
{
    Opening opening;
    Listener listener;
    QIOChannel *peer;

    opening_init(&opening, "main", 0);
    listener_init(&listener, &opening);
    opening_run(&opening);
    peer = listener_accept(&listener);
    handshake_channel_interrupt(opening.channel);
    WAIT_FOR(opening.done);
    g_assert_cmpuint(opening.steps, ==, 0);
    opening_end(&opening, "the destination has not taken the connection");
    assert_closed(peer);
    object_unref(OBJECT(peer));
    listener_end(&listener);
}

/* One coroutine may interrupt another's channel */
static void coroutine_fn interrupt_co(void *opaque)
{
    Opening *opening = opaque;

    handshake_channel_interrupt(opening->channel);
    g_assert_false(opening->done);
}

static void test_connect_interrupt_co(void)
{
    Opening opening;
    Listener listener;

    opening_init(&opening, "main", 0);
    listener_init(&listener, &opening);
    opening_run(&opening);
    qemu_coroutine_enter(qemu_coroutine_create(interrupt_co, &opening));
    opening_end(&opening, "the destination has not taken the connection");
    object_unref(OBJECT(listener_accept(&listener)));
    listener_end(&listener);
}

#ifdef CONFIG_GNUTLS

/* Group ffdhe2048 of RFC 7919; to generate one takes long */
static const char dh_params[] =
    "-----BEGIN DH PARAMETERS-----\n"
    "MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz\n"
    "+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a\n"
    "87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7\n"
    "YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi\n"
    "7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD\n"
    "ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==\n"
    "-----END DH PARAMETERS-----\n";

static QCryptoTLSCreds *server_creds;

static QCryptoTLSCreds *creds_new(const char *endpoint, const char *dir)
{
    return QCRYPTO_TLS_CREDS(
        object_new_with_props("tls-creds-psk", object_get_objects_root(),
                              endpoint, &error_abort, "endpoint", endpoint,
                              "dir", dir, NULL));
}

static char *tls_dir;
static char *tls_files[2];

static void tls_init(void)
{
    static const char keys[] = "qemu:009d5638c40fde0c\n";

    tls_dir = g_dir_make_tmp("qemu-test-handshake.XXXXXX", NULL);
    tls_files[0] = g_build_filename(tls_dir, "keys.psk", NULL);
    tls_files[1] = g_build_filename(tls_dir, "dh-params.pem", NULL);
    g_assert_true(g_file_set_contents(tls_files[0], keys, -1, NULL));
    g_assert_true(g_file_set_contents(tls_files[1], dh_params, -1, NULL));
    client_creds = creds_new("client", tls_dir);
    server_creds = creds_new("server", tls_dir);
}

static void tls_cleanup(void)
{
    object_unparent(OBJECT(client_creds));
    object_unparent(OBJECT(server_creds));
    for (int i = 0; i < ARRAY_SIZE(tls_files); i++) {
        unlink(tls_files[i]);
        g_free(tls_files[i]);
    }
    rmdir(tls_dir);
    g_free(tls_dir);
}

/* A destination that takes one channel over TLS, and gives it @answer */
typedef struct Server {
    QIOChannel *raw;
    QIOChannelTLS *tls;
    HandshakeHeader header;
    bool done;
    bool ok;
} Server;

static void coroutine_fn server_co(void *opaque)
{
    Server *server = opaque;
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeWire wire;

    qio_channel_set_blocking(server->raw, false, &error_abort);
    server->tls = qio_channel_tls_new_server(server->raw, server_creds, NULL,
                                             &error_abort);
    server->ok = handshake_tls_negotiate(server->tls, NULL);
    if (server->ok) {
        handshake_wire_init(&wire, QIO_CHANNEL(server->tls));
        server->ok = handshake_wire_read_header(&wire, &server->header,
                                                NULL) == 1;
        handshake_header_put(buf, &server->header);
        server->ok = server->ok && handshake_wire_send(&wire, buf, NULL);
        handshake_wire_destroy(&wire);
    }
    if (!server->ok) {
        qio_channel_shutdown(server->raw, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    server->done = true;
}

static void server_end(Server *server)
{
    WAIT_FOR(server->done);
    object_unref(OBJECT(server->tls));
    object_unref(OBJECT(server->raw));
}

static void test_tls(void)
{
    for (unsigned interrupt_at = 0; interrupt_at <= 3; interrupt_at++) {
        static const char *const why[] = {
            NULL, "has not taken the connection", "no answer to TLS",
            "no answer to its header",
        };
        Server server = { 0 };
        Opening opening;
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        use_tls = true;
        opening_init(&opening, MULTIFD, 7);
        opening.greet = true;
        opening.interrupt_at = interrupt_at;
        inet_address(&opening, fd);
        g_assert_cmpint(listen(fd, 1), ==, 0);
        opening_run(&opening);
        server.raw = QIO_CHANNEL(
            qio_channel_socket_new_fd(accept(fd, NULL, NULL), &error_abort));
        qemu_coroutine_enter(qemu_coroutine_create(server_co, &server));

        WAIT_FOR(opening.done);
        g_assert_cmpuint(opening.steps, ==, interrupt_at ?: 3);
        g_assert_cmpstr(tls_hostname, ==, interrupt_at == 1 ? NULL
                                                            : "127.0.0.1");
        if (!interrupt_at) {
            g_assert_true(object_dynamic_cast(
                OBJECT(handshake_channel_ioc(opening.channel)),
                TYPE_QIO_CHANNEL_TLS));
            g_assert_true(server.ok);
            g_assert_cmpstr(server.header.name, ==, MULTIFD);
            g_assert_cmpuint(server.header.index, ==, 7);
        }
        opening_end(&opening, why[interrupt_at]);
        server_end(&server);
        g_clear_pointer(&tls_hostname, g_free);
        use_tls = false;
        close(fd);
    }
}

/* Only one side uses it, or the other side is none of ours */
static void test_tls_alone(void)
{
    Opening opening;
    QIOChannel *peer;

    /* Silence, until it is interrupted once or twice */
    use_tls = true;
    for (int times = 1; times <= 2; times++) {
        opening_init(&opening, "main", 0);
        peer = opening_pair(&opening);
        opening_run(&opening);
        run_ready();
        g_assert_false(opening.done);
        g_assert_cmpuint(opening.steps, ==, 1);
        for (int i = 0; i < times; i++) {
            handshake_channel_interrupt(opening.channel);
        }
        opening_end(&opening, "no answer to TLS; does the destination have "
                    "'tls-creds' set?");
        object_unref(OBJECT(peer));
    }

    /* An end, and an answer without TLS; advice helps on the first channel */
    for (int i = 0; i < 2; i++) {
        opening_init(&opening, i ? MULTIFD : "main", 0);
        peer = opening_pair(&opening);
        opening_run(&opening);
        if (i) {
            peer_write(peer, "QMHS\0\0\0\x40", 8);
        }
        qio_channel_shutdown(peer, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
        opening_end(&opening, i ? "TLS failed: "
                    : "TLS with the destination failed (set 'tls-creds' on "
                      "both sides or on none): ");
        object_unref(OBJECT(peer));
    }
    use_tls = false;
}

/* A destination's side of it ends when its connection is shut down, too */
static void test_tls_server(void)
{
    Server server = { 0 };
    Opening opening;

    opening_init(&opening, "main", 0);
    server.raw = opening_pair(&opening);
    qemu_coroutine_enter(qemu_coroutine_create(server_co, &server));
    run_ready();
    g_assert_false(server.done);
    qio_channel_shutdown(server.raw, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
    server_end(&server);
    g_assert_false(server.ok);
    handshake_channel_free(opening.channel);
    object_unref(OBJECT(opening.ioc));
}

#endif

static void test_tls_no_creds(void)
{
    QCryptoTLSCreds *creds = g_steal_pointer(&client_creds);
    Opening opening;
    QIOChannel *peer;

    use_tls = true;
    opening_init(&opening, "main", 0);
    peer = opening_pair(&opening);
    opening_run(&opening);
    opening_end(&opening, "No TLS credentials with id 'tls0'");
    assert_closed(peer);
    object_unref(OBJECT(peer));
    use_tls = false;
    client_creds = creds;
}

static QIOChannel *channel_new(void)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_null_new());

    g_assert_cmpuint(OBJECT(ioc)->ref, ==, 1);
    return ioc;
}

/* Drops the test's reference, which must be the last one */
static void channel_free(QIOChannel *ioc)
{
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, 1);
    object_unref(OBJECT(ioc));
}

static void add(HandshakePlaces *places, const char *name, uint32_t index,
                QIOChannel *ioc)
{
    HandshakeHeader header = header_for(name, index);
    uint32_t ref = OBJECT(ioc)->ref;

    g_assert_true(handshake_places_add(places, &header, ioc, &error_abort));
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, ref + 1);
}

#define FOREIGN     "is of another session"
#define NO_PLACE    "has no channel"
#define AGAIN       "comes a second time"

/*
 * @header must be refused with an error that has @why in it, and says which
 * channel it is about.  Nothing may come of it.
 */
static void refuse_header(HandshakePlaces *places,
                          const HandshakeHeader *header, const char *why)
{
    g_autofree char *which = g_strdup_printf("'%s' %" PRIu32, header->name,
                                             header->index);
    unsigned missing = handshake_places_missing(places);
    QIOChannel *ioc = channel_new();
    Error *err = NULL;

    if (handshake_places_add(places, header, ioc, &err)) {
        g_error("%s was taken, but expected '%s'", which, why);
    }
    if (!strstr(error_get_pretty(err), why) ||
        !strstr(error_get_pretty(err), which)) {
        g_error("expected '%s' and %s in '%s'", why, which,
                error_get_pretty(err));
    }
    error_free(err);
    /* The caller need not want to know */
    g_assert_false(handshake_places_add(places, header, ioc, NULL));
    g_assert_cmpuint(handshake_places_missing(places), ==, missing);
    channel_free(ioc);
}

static void refuse(HandshakePlaces *places, const char *name, uint32_t index,
                   const char *why)
{
    HandshakeHeader header = header_for(name, index);

    refuse_header(places, &header, why);
}

/* Takes what must be @ioc, and drops it */
static void take(HandshakePlaces *places, const char *name, uint32_t index,
                 QIOChannel *ioc)
{
    uint32_t ref = OBJECT(ioc)->ref;

    g_assert_true(handshake_places_take(places, name, index) == ioc);
    /* Its reference is ours now */
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, ref);
    object_unref(OBJECT(ioc));
}

/* The names are laid down in the specification */
static void test_names(void)
{
    g_assert_cmpstr(HANDSHAKE_CHANNEL_MAIN, ==, "main");
    g_assert_cmpstr(HANDSHAKE_CHANNEL_MULTIFD, ==, "multifd");
    g_assert_cmpstr(HANDSHAKE_CHANNEL_PREEMPT, ==, "preempt");
}

static void test_places_new(void)
{
    static const unsigned counts[] = { 0, 1, 2, 8, MULTIFD_MAX };

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        for (int preempt = 0; preempt < 2; preempt++) {
            g_autoptr(HandshakePlaces) places =
                handshake_places_new(&session, counts[i], preempt);

            g_assert_cmpuint(handshake_places_missing(places), ==,
                             counts[i] + preempt);
        }
    }
    handshake_places_free(NULL);
    g_assert_null(handshake_places_take(NULL, MULTIFD, 0));
}

static void test_places_session(void)
{
    QemuUUID id = session;
    g_autoptr(HandshakePlaces) places = handshake_places_new(&id, 2, true);
    QIOChannel *ioc = channel_new();

    /* The caller may use its own for something else */
    memset(&id, 0xff, sizeof(id));
    add(places, MULTIFD, 1, ioc);
    for (int bit = 0; bit < 8 * sizeof(session); bit++) {
        HandshakeHeader header = header_for(MULTIFD, 0);

        header.session.data[bit / 8] ^= 1 << bit % 8;
        refuse_header(places, &header, FOREIGN);
        /* It is none of ours, so what else is wrong with it does not matter */
        header.index = 1;
        refuse_header(places, &header, FOREIGN);
        header.index = 2;
        refuse_header(places, &header, FOREIGN);
        header = header_for(PREEMPT, 0);
        header.session.data[bit / 8] ^= 1 << bit % 8;
        refuse_header(places, &header, FOREIGN);
    }
    g_assert_null(handshake_places_take(places, MULTIFD, 0));
    g_assert_null(handshake_places_take(places, PREEMPT, 0));
    take(places, MULTIFD, 1, ioc);
    channel_free(ioc);
}

static void test_places_unknown(void)
{
    static const char *const names[] = {
        "", "main", "Multifd", "multif", "multifd0", "multifd ", " multifd",
        "preemp", "preempt0", "Preempt", "postcopy-preempt", "colo",
        "grease-00000000", "multifdmultifdmu",
    };
    static const uint32_t indices[] = { 0, 1, 2, UINT32_MAX };
    g_autoptr(HandshakePlaces) places = handshake_places_new(&session, 2, true);

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        for (int j = 0; j < ARRAY_SIZE(indices); j++) {
            refuse(places, names[i], indices[j], NO_PLACE);
            g_assert_null(handshake_places_take(places, names[i], indices[j]));
        }
    }
    g_assert_cmpuint(handshake_places_missing(places), ==, 3);
}

static void test_places_index(void)
{
    static const unsigned counts[] = { 0, 1, 2, 8, MULTIFD_MAX };

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        const uint32_t outside[] = {
            counts[i], counts[i] + 1, 256, 257, 0x7fffffff, 0x80000000u,
            0x80000000u + counts[i], UINT32_MAX - 1, UINT32_MAX,
        };
        bool preempt = i & 1;
        g_autoptr(HandshakePlaces) places =
            handshake_places_new(&session, counts[i], preempt);
        QIOChannel *ioc = channel_new();

        for (int j = 0; j < ARRAY_SIZE(outside); j++) {
            refuse(places, MULTIFD, outside[j], NO_PLACE);
            g_assert_null(handshake_places_take(places, MULTIFD, outside[j]));
            if (outside[j] >= preempt) {
                refuse(places, PREEMPT, outside[j], NO_PLACE);
                g_assert_null(handshake_places_take(places, PREEMPT,
                                                    outside[j]));
            }
        }
        /* But the one before */
        if (counts[i]) {
            add(places, MULTIFD, counts[i] - 1, ioc);
            g_assert_cmpuint(handshake_places_missing(places), ==,
                             counts[i] - 1 + preempt);
            take(places, MULTIFD, counts[i] - 1, ioc);
        }
        channel_free(ioc);
    }
}

/* What was taken has been there all the same, and so has the very same one */
static void test_places_again(void)
{
    g_autoptr(HandshakePlaces) places = handshake_places_new(&session, 3, true);
    HandshakeHeader header = header_for(MULTIFD, 1);
    QIOChannel *multifd = channel_new();
    QIOChannel *preempt = channel_new();

    add(places, MULTIFD, 1, multifd);
    add(places, PREEMPT, 0, preempt);
    g_assert_false(handshake_places_add(places, &header, multifd, NULL));
    for (int i = 0; i < 2; i++) {
        refuse(places, MULTIFD, 1, AGAIN);
        refuse(places, PREEMPT, 0, AGAIN);
        g_assert_cmpuint(handshake_places_missing(places), ==, 2);
        if (!i) {
            /* It is the first one that counts */
            take(places, MULTIFD, 1, multifd);
            take(places, PREEMPT, 0, preempt);
        }
        /* Once */
        g_assert_null(handshake_places_take(places, MULTIFD, i));
    }
    g_assert_null(handshake_places_take(places, PREEMPT, 0));
    channel_free(multifd);
    channel_free(preempt);
}

/* A failure leaves the place to the one that belongs there */
static void test_places_add_after_failure(void)
{
    g_autoptr(HandshakePlaces) places = handshake_places_new(&session, 1, true);
    QIOChannel *ioc = channel_new();
    const char *const names[] = { MULTIFD, PREEMPT };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        HandshakeHeader header = header_for(names[i], 0);

        header.session.data[15]++;
        refuse_header(places, &header, FOREIGN);
        refuse(places, names[i], 1, NO_PLACE);
        add(places, names[i], 0, ioc);
        take(places, names[i], 0, ioc);
    }
    g_assert_cmpuint(handshake_places_missing(places), ==, 0);
    channel_free(ioc);
}

static void test_places_drop(void)
{
    g_autoptr(HandshakePlaces) places = handshake_places_new(&session, 3, true);
    QIOChannel *kept = channel_new();
    QIOChannel *taken = channel_new();
    QIOChannel *preempt = channel_new();

    add(places, MULTIFD, 0, kept);
    add(places, MULTIFD, 2, taken);
    add(places, PREEMPT, 0, preempt);
    g_assert_cmpuint(handshake_places_missing(places), ==, 1);
    take(places, MULTIFD, 2, taken);

    /* Nothing of another name goes, and nothing goes twice */
    handshake_places_drop(places, "main");
    g_assert_cmpuint(handshake_places_missing(places), ==, 1);
    for (int i = 0; i < 2; i++) {
        handshake_places_drop(places, MULTIFD);
        g_assert_cmpuint(handshake_places_missing(places), ==, 0);
        g_assert_cmpuint(OBJECT(kept)->ref, ==, 1);
        refuse(places, MULTIFD, 1, NO_PLACE);
        g_assert_null(handshake_places_take(places, MULTIFD, 0));
    }
    take(places, PREEMPT, 0, preempt);
    handshake_places_drop(places, PREEMPT);
    refuse(places, PREEMPT, 0, NO_PLACE);
    channel_free(kept);
    channel_free(taken);
    channel_free(preempt);
}

static void test_places_references(void)
{
    g_autoptr(HandshakePlaces) places = handshake_places_new(&session, 3, true);
    QIOChannel *kept = channel_new();
    QIOChannel *taken = channel_new();
    QIOChannel *preempt = channel_new();

    add(places, MULTIFD, 0, kept);
    add(places, MULTIFD, 2, taken);
    add(places, PREEMPT, 0, preempt);

    /* The place alone keeps it */
    object_unref(OBJECT(taken));
    g_assert_true(handshake_places_take(places, MULTIFD, 2) == taken);
    g_assert_cmpuint(OBJECT(taken)->ref, ==, 1);

    /* What nobody has taken goes with the places, and nothing else */
    handshake_places_free(g_steal_pointer(&places));
    channel_free(kept);
    channel_free(preempt);
    channel_free(taken);
}

/* As many as there can be, in no particular order */
static void test_places_many(void)
{
    g_autoptr(HandshakePlaces) places =
        handshake_places_new(&session, MULTIFD_MAX, true);
    QIOChannel *iocs[MULTIFD_MAX];
    QIOChannel *preempt = channel_new();

    for (unsigned i = 0; i < MULTIFD_MAX; i++) {
        /* 101 and 255 have no divisor in common, so each comes once */
        unsigned index = (i * 101 + 7) % MULTIFD_MAX;

        g_assert_cmpuint(handshake_places_missing(places), ==,
                         MULTIFD_MAX - i + (i <= 100));
        iocs[index] = channel_new();
        add(places, MULTIFD, index, iocs[index]);
        refuse(places, MULTIFD, index, AGAIN);
        if (i == 100) {
            add(places, PREEMPT, 0, preempt);
        }
    }
    g_assert_cmpuint(handshake_places_missing(places), ==, 0);
    refuse(places, MULTIFD, MULTIFD_MAX, NO_PLACE);

    /* Each is where it belongs */
    for (unsigned i = 0; i < MULTIFD_MAX; i += 2) {
        take(places, MULTIFD, i, iocs[i]);
        channel_free(iocs[i]);
    }
    handshake_places_free(g_steal_pointer(&places));
    for (unsigned i = 1; i < MULTIFD_MAX; i += 2) {
        channel_free(iocs[i]);
    }
    channel_free(preempt);
}

int main(int argc, char **argv)
{
    int ret;
    static const struct {
        const char *path;
        GTestFunc func;
    } tests[] = {
        { "names", test_names },
        { "greet", test_greet },
        { "greet/wrong", test_greet_wrong },
        { "greet/garbage", test_greet_garbage },
        { "greet/bytes", test_greet_bytes },
        { "greet/longer", test_greet_longer },
        { "greet/taken", test_greet_taken },
        { "greet/silence", test_greet_silence },
        { "greet/full", test_greet_full },
        { "interrupt/early", test_interrupt_early },
        { "connect", test_connect },
        { "connect/refused", test_connect_refused },
        { "connect/zero-copy", test_connect_zero_copy },
        { "connect/interrupt", test_connect_interrupt },
        { "connect/interrupt/late", test_connect_interrupt_late },
        { "connect/interrupt/coroutine", test_connect_interrupt_co },
#ifdef CONFIG_GNUTLS
        { "tls", test_tls },
        { "tls/alone", test_tls_alone },
        { "tls/server", test_tls_server },
#endif
        { "tls/no-creds", test_tls_no_creds },
        { "places/new", test_places_new },
        { "places/session", test_places_session },
        { "places/unknown", test_places_unknown },
        { "places/index", test_places_index },
        { "places/again", test_places_again },
        { "places/add-after-failure", test_places_add_after_failure },
        { "places/drop", test_places_drop },
        { "places/references", test_places_references },
        { "places/many", test_places_many },
    };

    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    socket_init();
    /* As QEMU does */
    signal(SIGPIPE, SIG_IGN);
    qemu_init_main_loop(&error_abort);
#ifdef CONFIG_GNUTLS
    tls_init();
#endif
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/migration/handshake/channel/"
                                                "%s", tests[i].path);

        g_test_add_func(path, tests[i].func);
    }
    ret = g_test_run();
#ifdef CONFIG_GNUTLS
    tls_cleanup();
#endif
    return ret;
}
