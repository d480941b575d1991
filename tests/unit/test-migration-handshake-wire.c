/*
 * Migration handshake: channel header and frames
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "migration/handshake/wire.h"

/*
 * A peer whose bytes are known beforehand: what it sends arrives in pieces,
 * what it gets is kept.  After the last byte it has gone, so that nothing here
 * can wait for ever.
 */
#define TYPE_TEST_CHANNEL "test-handshake-channel"
OBJECT_DECLARE_SIMPLE_TYPE(TestChannel, TEST_CHANNEL)

struct TestChannel {
    QIOChannel parent;
    GByteArray *in;
    size_t pos;             /* how much of @in has been read */
    size_t piece;           /* bytes in one read or write; 0 for all */
    bool endless;           /* @in is followed by zeros */
    size_t room;            /* writing fails after so many bytes */
    GByteArray *out;
    bool shut_down;
};

static ssize_t test_channel_readv(QIOChannel *ioc, const struct iovec *iov,
                                  size_t niov, int **fds, size_t *nfds,
                                  int flags, Error **errp)
{
    TestChannel *chan = TEST_CHANNEL(ioc);
    size_t len = iov[0].iov_len;

    if (chan->piece) {
        len = MIN(len, chan->piece);
    }
    if (chan->endless) {
        memset(iov[0].iov_base, 0, len);
    } else {
        len = MIN(len, chan->in->len - chan->pos);
        if (len) {
            memcpy(iov[0].iov_base, chan->in->data + chan->pos, len);
        }
    }
    chan->pos += len;
    return len;
}

static ssize_t test_channel_writev(QIOChannel *ioc, const struct iovec *iov,
                                   size_t niov, int *fds, size_t nfds,
                                   int flags, Error **errp)
{
    TestChannel *chan = TEST_CHANNEL(ioc);
    size_t len = iov[0].iov_len;

    if (chan->piece) {
        len = MIN(len, chan->piece);
    }
    len = MIN(len, chan->room);
    if (!len) {
        error_setg(errp, "no room");
        return -1;
    }
    chan->room -= len;
    g_byte_array_append(chan->out, iov[0].iov_base, len);
    return len;
}

static int test_channel_close(QIOChannel *ioc, Error **errp)
{
    return 0;
}

static int test_channel_set_blocking(QIOChannel *ioc, bool enabled,
                                     Error **errp)
{
    return 0;
}

static int test_channel_shutdown(QIOChannel *ioc, QIOChannelShutdown how,
                                 Error **errp)
{
    g_assert_cmpint(how, ==, QIO_CHANNEL_SHUTDOWN_WRITE);
    TEST_CHANNEL(ioc)->shut_down = true;
    return 0;
}

static GSource *test_channel_create_watch(QIOChannel *ioc,
                                          GIOCondition condition)
{
    g_assert_not_reached();
}

static void test_channel_init(Object *obj)
{
    TestChannel *chan = TEST_CHANNEL(obj);

    chan->in = g_byte_array_new();
    chan->out = g_byte_array_new();
    chan->room = SIZE_MAX;
    qio_channel_set_feature(QIO_CHANNEL(obj), QIO_CHANNEL_FEATURE_SHUTDOWN);
}

static void test_channel_finalize(Object *obj)
{
    TestChannel *chan = TEST_CHANNEL(obj);

    g_byte_array_unref(chan->in);
    g_byte_array_unref(chan->out);
}

static void test_channel_class_init(ObjectClass *klass, void *data)
{
    QIOChannelClass *ioc_klass = QIO_CHANNEL_CLASS(klass);

    ioc_klass->io_readv = test_channel_readv;
    ioc_klass->io_writev = test_channel_writev;
    ioc_klass->io_close = test_channel_close;
    ioc_klass->io_set_blocking = test_channel_set_blocking;
    ioc_klass->io_shutdown = test_channel_shutdown;
    ioc_klass->io_create_watch = test_channel_create_watch;
}

static const TypeInfo test_channel_info = {
    .name = TYPE_TEST_CHANNEL,
    .parent = TYPE_QIO_CHANNEL,
    .instance_size = sizeof(TestChannel),
    .instance_init = test_channel_init,
    .instance_finalize = test_channel_finalize,
    /* The type of this function's last argument differs between versions */
    .class_init = (void *)test_channel_class_init,
};

/* A conversation with a peer that sends @len bytes, @piece at a time */
static TestChannel *wire_open(HandshakeWire *wire, const void *data,
                              size_t len, size_t piece)
{
    TestChannel *chan = TEST_CHANNEL(object_new(TYPE_TEST_CHANNEL));

    g_byte_array_append(chan->in, data, len);
    chan->piece = piece;
    handshake_wire_init(wire, QIO_CHANNEL(chan));
    object_unref(OBJECT(chan));
    return chan;
}

/* Byte by byte from the specification, not by the code under test */
static void put_be(GByteArray *buf, uint64_t value, int size)
{
    while (size--) {
        uint8_t byte = value >> (size * 8);

        g_byte_array_append(buf, &byte, 1);
    }
}

static void put_zeros(GByteArray *buf, size_t len)
{
    while (len--) {
        put_be(buf, 0, 1);
    }
}

static void put_header(GByteArray *buf, uint16_t size)
{
    put_be(buf, 0x514d4853, 4);             /* QMHS */
    put_be(buf, 0, 2);
    put_be(buf, size, 2);
    put_be(buf, 0x0011223344556677, 8);
    put_be(buf, 0x8899aabbccddeeff, 8);
    g_byte_array_append(buf, (const uint8_t *)"multifd\0\0\0\0\0\0\0\0", 16);
    put_be(buf, 0x01020304, 4);
    put_zeros(buf, 20);
    if (size > 64) {
        /* What a later version may add, which nobody looks at today */
        for (int i = 64; i < size; i++) {
            put_be(buf, i, 1);
        }
    }
}

static void put_prefix(GByteArray *buf, uint32_t length, uint16_t type,
                       uint16_t flags)
{
    put_be(buf, length, 4);
    put_be(buf, type, 2);
    put_be(buf, flags, 2);
}

static void put_frame(GByteArray *buf, uint16_t type, uint16_t flags,
                      const char *text)
{
    put_prefix(buf, strlen(text), type, flags);
    g_byte_array_append(buf, (const uint8_t *)text, strlen(text));
}

static void assert_fails(Error **err, const char *text)
{
    g_assert_nonnull(*err);
    if (!strstr(error_get_pretty(*err), text)) {
        g_error("expected '%s' in '%s'", text, error_get_pretty(*err));
    }
    error_free(*err);
    *err = NULL;
}

static void assert_reads(HandshakeWire *wire, HandshakeFrameType expected,
                         const char *text)
{
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;

    g_assert_true(handshake_wire_read_frame(wire, &type, &json, &error_abort));
    g_assert_cmpint(type, ==, expected);
    g_assert_cmpuint(json->len, ==, strlen(text));
    g_assert_cmpstr(json->str, ==, text);
}

static void assert_refuses(HandshakeWire *wire, const char *text)
{
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;
    Error *err = NULL;

    g_assert_false(handshake_wire_read_frame(wire, &type, &json, &err));
    g_assert_null(json);
    assert_fails(&err, text);
    /* A peer that is still there can be told */
    g_assert_true(wire->broken == !!strstr(text, "closed"));
}

/* Returns whether it is one of a migration without handshake */
static bool assert_header_refused(const GByteArray *buf, const char *text,
                                  size_t consumed)
{
    HandshakeWire wire;
    TestChannel *chan = wire_open(&wire, buf->data, buf->len, 0);
    HandshakeHeader header;
    Error *err = NULL;

    g_assert_cmpint(handshake_wire_read_header(&wire, &header, &err), ==, -1);
    assert_fails(&err, text);
    g_assert_cmpuint(chan->pos, ==, consumed);
    g_assert_false(wire.broken);
    handshake_wire_destroy(&wire);
    return wire.legacy;
}

/* Reads @buf's header, which must be good, and returns how long it is */
static size_t read_header(const GByteArray *buf, HandshakeHeader *header)
{
    HandshakeWire wire;
    TestChannel *chan = wire_open(&wire, buf->data, buf->len, 0);
    size_t size;

    memset(header, 0xff, sizeof(*header));
    g_assert_cmpint(handshake_wire_read_header(&wire, header, &error_abort),
                    ==, 1);
    size = chan->pos;
    g_assert_cmpuint(wire.bytes_received, ==, size);
    handshake_wire_destroy(&wire);
    return size;
}

/* Whether it is what put_header() has put */
static void assert_header(const HandshakeHeader *header)
{
    for (int i = 0; i < 16; i++) {
        g_assert_cmphex(header->session.data[i], ==, i * 0x11);
    }
    g_assert_cmpstr(header->name, ==, "multifd");
    g_assert_cmphex(header->index, ==, 0x01020304);
}

static void test_header_layout(void)
{
    g_autoptr(GByteArray) expected = g_byte_array_new();
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header;

    put_header(expected, 64);
    g_assert_cmpuint(read_header(expected, &header), ==, 64);
    assert_header(&header);

    /* It goes to the end of what is there */
    g_byte_array_append(buf, (const uint8_t *)"abc", 3);
    handshake_header_put(buf, &header);
    g_assert_cmpmem(buf->data, 3, "abc", 3);
    g_assert_cmpmem(buf->data + 3, buf->len - 3, expected->data, expected->len);

    /* Reserved bytes are for later versions */
    memset(expected->data + 4, 0xa5, 2);
    memset(expected->data + 44, 0xa5, 20);
    g_assert_cmpuint(read_header(expected, &header), ==, 64);
    assert_header(&header);
}

static void test_header_roundtrip(void)
{
    static const char *const names[] = {
        "m", "main", "~!\"#$%&'()*+,-./", "0123456789abcdef"
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        HandshakeHeader header = { .index = UINT32_MAX - i };
        HandshakeHeader got;

        pstrcpy(header.name, sizeof(header.name), names[i]);
        qemu_uuid_generate(&header.session);
        handshake_header_put(buf, &header);
        g_assert_cmpuint(read_header(buf, &got), ==, 64);
        g_assert_true(qemu_uuid_is_equal(&got.session, &header.session));
        g_assert_cmpstr(got.name, ==, names[i]);
        g_assert_cmphex(got.index, ==, header.index);
    }
}

static void test_header_length(void)
{
    static const uint16_t good[] = { 64, 65, 100, 4095, 4096 };
    static const uint16_t bad[] = { 0, 1, 63, 4097, 65535 };

    for (int i = 0; i < ARRAY_SIZE(good); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        HandshakeHeader header;

        put_header(buf, good[i]);
        put_frame(buf, HANDSHAKE_FRAME_HELLO, 0, "{}");
        g_assert_cmpuint(read_header(buf, &header), ==, good[i]);
        assert_header(&header);
    }
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autofree char *text = g_strdup_printf("header of %d bytes", bad[i]);

        put_header(buf, bad[i]);
        assert_header_refused(buf, text, 8);
    }
}

/* As one that is read without waiting, and never beyond its end */
static void test_header_pieces(void)
{
    static const uint16_t sizes[] = { 64, 65, 4096 };

    for (int i = 0; i < ARRAY_SIZE(sizes); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        HandshakeHeader header;

        put_header(buf, sizes[i]);
        for (size_t len = 0; len <= sizes[i]; len++) {
            int missing = len < 8 ? 8 - len : sizes[i] - len;

            g_assert_cmpint(handshake_header_get(buf->data, len, &header,
                                                 &error_abort), ==, missing);
        }
        assert_header(&header);

        for (size_t len = 0; len <= sizes[i]; len++) {
            Error *err = NULL;

            buf->data[0] = 'q';
            if (len < 8) {
                g_assert_cmpint(handshake_header_get(buf->data, len, &header,
                                                     &err), ==, 8 - len);
                g_assert_null(err);
            } else {
                g_assert_cmpint(handshake_header_get(buf->data, len, &header,
                                                     &err), ==, -1);
                assert_fails(&err, "not a migration handshake");
            }
        }
    }
}

static void test_header_foreign(void)
{
    static const struct {
        const char *first;
        const char *text;
    } peers[] = {
        { "QEVM\0\0\0\3", "a migration stream without handshake" },
        { "\x11\x22\x33\x44\0\0\0\1", "a multifd channel" },
        { "\x16\x03\x01\x02\0\1\0\1", "a TLS client hello" },
        { "\x15\x03\x03\0\2\2\x28\0", "a TLS alert" },
        { "GET / HTTP/1.1", "HTTP" },
        { "POST / HTTP/1.1", "HTTP" },
        { "HEAD / HTTP/1.1", "HTTP" },
        { "HTTP/1.1 400 Bad Request", "HTTP" },
        { "SSH-2.0-OpenSSH_9.2", "SSH" },
        { "\0\0\0\0\0\0\0\0", "something else" },
        { "QMHT\0\0\0\x40", "something else" },
        { "qmhs\0\0\0\x40", "something else" },
        { "SHMQ\0\0\0\x40", "something else" },
        { "\x16\x04\x01\x02\0\1\0\1", "something else" },
        { "\x15\x04\x03\0\2\2\x28\0", "something else" },
        { "\x17\x03\x03\0\2\2\x28\0", "something else" },
    };

    for (int i = 0; i < ARRAY_SIZE(peers); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autofree char *text = g_strdup_printf("the peer sent %s",
                                                peers[i].text);

        g_byte_array_append(buf, (const uint8_t *)peers[i].first, 8);
        put_zeros(buf, 100);
        /* It is told from eight bytes: it may wait for our answer to them */
        assert_header_refused(buf, text, 8);
        g_byte_array_set_size(buf, 8);
        g_assert_true(assert_header_refused(buf, text, 8) == (i < 2));
    }
}

static void test_header_name(void)
{
    static const char bad[][17] = {
        "",
        "\0main",
        "main\0x",
        "main\0\0\0\0\0\0\0\0\0\0\0x",
        "ma in",
        " main",
        "main\n",
        "\x01",
        "main\x7f",
        "m\xc3\xa4in",
        "\xff\xff\xff\xff",
        "0123456789abcde ",
    };

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();

        put_header(buf, 64);
        memcpy(buf->data + 24, bad[i], 16);
        assert_header_refused(buf, "malformed channel name", 64);
    }
}

static void test_frame_layout(void)
{
    g_autoptr(GByteArray) expected = g_byte_array_new();
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_header(expected, 64);
    put_frame(expected, 0x1a1a, 0x8000, "{\"a\": 1}");
    put_frame(expected, HANDSHAKE_FRAME_HELLO, 1, "{}");

    put_header(buf, 64);
    g_assert_true(handshake_frame_put(buf, 0x1a1a, 0x8000, "{\"a\": 1}",
                                      &error_abort));
    g_assert_true(handshake_frame_put(buf, HANDSHAKE_FRAME_HELLO,
                                      HANDSHAKE_FRAME_CRITICAL, "{}",
                                      &error_abort));
    g_assert_cmpmem(buf->data, buf->len, expected->data, expected->len);
}

static void test_frame_types(void)
{
    /* The numbers never change */
    static const struct {
        HandshakeFrameType type;
        int number;
        const char *name;
    } types[] = {
        { HANDSHAKE_FRAME_HELLO, 1, "HELLO" },
        { HANDSHAKE_FRAME_ACCEPT, 2, "ACCEPT" },
        { HANDSHAKE_FRAME_REJECT, 3, "REJECT" },
        { HANDSHAKE_FRAME_COMMIT, 4, "COMMIT" },
        { HANDSHAKE_FRAME_ABORT, 5, "ABORT" },
        { HANDSHAKE_FRAME_LAST_WORD, 10, "LAST WORD" },
        { 0, 0, "unknown" },
        { UINT16_MAX, UINT16_MAX, "unknown" },
    };

    for (int i = 0; i < ARRAY_SIZE(types); i++) {
        g_assert_cmpint(types[i].type, ==, types[i].number);
        g_assert_cmpstr(handshake_frame_type_str(types[i].type), ==,
                        types[i].name);
    }
}

static void test_frame_bounds(void)
{
    static const struct {
        uint16_t type;
        size_t max;
    } bounds[] = {
        { 0, 128 * 1024 },
        { HANDSHAKE_FRAME_HELLO, 512 * 1024 },
        { HANDSHAKE_FRAME_ACCEPT, 128 * 1024 },
        { HANDSHAKE_FRAME_REJECT, 128 * 1024 },
        { HANDSHAKE_FRAME_COMMIT, 128 * 1024 },
        { HANDSHAKE_FRAME_ABORT, 128 * 1024 },
        { HANDSHAKE_FRAME_LAST_WORD, 16 * 1024 },
        { UINT16_MAX, 128 * 1024 },
    };

    for (int i = 0; i < ARRAY_SIZE(bounds); i++) {
        const uint16_t type = bounds[i].type;
        const size_t max = bounds[i].max;
        const uint32_t bad[] = { max + 1, 0x80000000, UINT32_MAX };
        g_autofree char *good = g_strnfill(max, 'x');
        g_autofree char *too_long = g_strnfill(max + 1, 'x');
        g_autofree char *refusal =
            g_strdup_printf("frame of type 0x%04x ", type);
        g_autoptr(GByteArray) buf = g_byte_array_new();
        HandshakeWire wire;
        Error *err = NULL;

        g_assert_true(handshake_frame_put(buf, type, 0, good, &error_abort));
        g_assert_cmpuint(buf->len, ==, 8 + max);
        g_assert_false(handshake_frame_put(buf, type, 0, too_long, &err));
        g_assert_cmpuint(buf->len, ==, 8 + max);
        assert_fails(&err, "too long");

        put_frame(buf, HANDSHAKE_FRAME_ABORT, 0, "{}");
        wire_open(&wire, buf->data, buf->len, 0);
        if (type >= HANDSHAKE_FRAME_HELLO && type <= HANDSHAKE_FRAME_ABORT) {
            assert_reads(&wire, type, good);
        }
        assert_reads(&wire, HANDSHAKE_FRAME_ABORT, "{}");
        handshake_wire_destroy(&wire);

        /* Found out before anything is read */
        for (int j = 0; j < ARRAY_SIZE(bad); j++) {
            g_byte_array_set_size(buf, 0);
            put_prefix(buf, bad[j], type, 0);
            wire_open(&wire, buf->data, buf->len, 0);
            assert_refuses(&wire, refusal);
            handshake_wire_destroy(&wire);
        }
    }
}

/* The wire hands over what came: the reader of JSON looks at it */
static void test_frame_payload(void)
{
    static const char text[] = "{\0\xff\"\x80\0}";
    static const uint16_t flags[] = { 0, 1, 2, 0xfffe, 0xffff };

    for (int type = HANDSHAKE_FRAME_HELLO; type <= HANDSHAKE_FRAME_ABORT;
         type++) {
        for (int i = 0; i < ARRAY_SIZE(flags); i++) {
            g_autoptr(GByteArray) buf = g_byte_array_new();
            g_autoptr(GString) json = NULL;
            HandshakeFrameType got;
            HandshakeWire wire;

            put_prefix(buf, sizeof(text), type, flags[i]);
            g_byte_array_append(buf, (const uint8_t *)text, sizeof(text));
            put_frame(buf, 0x2a2a, 0, "");
            put_frame(buf, type, flags[i], "");
            wire_open(&wire, buf->data, buf->len, 0);
            g_assert_true(handshake_wire_read_frame(&wire, &got, &json,
                                                    &error_abort));
            g_assert_cmpint(got, ==, type);
            g_assert_cmpmem(json->str, json->len, text, sizeof(text));
            g_assert_cmpint(json->str[json->len], ==, '\0');
            assert_reads(&wire, type, "");
            handshake_wire_destroy(&wire);
        }
    }
}

static void test_unknown_skipped(void)
{
    static const uint16_t types[] = { 0, 6, 10, 0x0a0a, UINT16_MAX };
    static const uint16_t flags[] = { 0, 2, 0x8000, 0xfffe };

    for (int i = 0; i < ARRAY_SIZE(types); i++) {
        for (int j = 0; j < ARRAY_SIZE(flags); j++) {
            g_autoptr(GByteArray) buf = g_byte_array_new();
            HandshakeWire wire;

            put_frame(buf, types[i], flags[j], "what is this?");
            put_frame(buf, HANDSHAKE_FRAME_HELLO, 1, "{}");
            wire_open(&wire, buf->data, buf->len, 0);
            assert_reads(&wire, HANDSHAKE_FRAME_HELLO, "{}");
            handshake_wire_destroy(&wire);
        }
    }
}

static void test_unknown_critical(void)
{
    static const uint16_t types[] = { 0, 6, 10, 0x0a0a, UINT16_MAX };
    static const uint16_t flags[] = { 1, 0x8001, 0xffff };

    for (int i = 0; i < ARRAY_SIZE(types); i++) {
        for (int j = 0; j < ARRAY_SIZE(flags); j++) {
            g_autofree char *text =
                g_strdup_printf("frame of type 0x%04x is critical", types[i]);
            g_autoptr(GByteArray) buf = g_byte_array_new();
            HandshakeWire wire;

            put_frame(buf, types[i], flags[j], "what is this?");
            put_frame(buf, HANDSHAKE_FRAME_HELLO, 1, "{}");
            wire_open(&wire, buf->data, buf->len, 0);
            assert_refuses(&wire, text);
            handshake_wire_destroy(&wire);
        }
    }
}

/* A known frame in between does not make room for more */
static void test_unknown_many(void)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeWire wire;

    for (int i = 0; i < 17; i++) {
        put_frame(buf, 0x0a0a, 0, "{}");
        put_frame(buf, HANDSHAKE_FRAME_HELLO, 0, "{}");
    }
    wire_open(&wire, buf->data, buf->len, 0);
    for (int i = 0; i < 16; i++) {
        assert_reads(&wire, HANDSHAKE_FRAME_HELLO, "{}");
    }
    assert_refuses(&wire, "more than 16 frames");
    handshake_wire_destroy(&wire);
}

#define HELLO_TEXT "{\"versions\": [1], \"purpose\": \"migrate\"}"

/* All that a source sends before the verdict */
static GByteArray *whole_conversation(void)
{
    GByteArray *buf = g_byte_array_new();

    put_header(buf, 72);
    put_frame(buf, 0x7a7a, 0, "{\"grease\": true}");
    put_frame(buf, HANDSHAKE_FRAME_HELLO, 1, HELLO_TEXT);
    return buf;
}

/* How far a peer gets that sends the first @len bytes of the conversation */
static int converse(const GByteArray *buf, size_t len, size_t piece)
{
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;
    HandshakeHeader header;
    HandshakeWire wire;
    TestChannel *chan = wire_open(&wire, buf->data, len, piece);
    Error *err = NULL;
    int ret;

    ret = handshake_wire_read_header(&wire, &header, &err);
    if (ret == 1) {
        if (handshake_wire_read_frame(&wire, &type, &json, &err)) {
            g_assert_cmpint(type, ==, HANDSHAKE_FRAME_HELLO);
            g_assert_cmpstr(json->str, ==, HELLO_TEXT);
            ret = 2;
        } else {
            g_assert_null(json);
            ret = -1;
        }
    }
    g_assert_true(!!err == (ret == -1));
    /* There is nobody left to tell it to */
    g_assert_true(wire.broken == (ret != 2));
    g_assert_cmpuint(chan->pos, ==, len);
    g_assert_cmpuint(wire.bytes_received, <=, len);
    error_free(err);
    handshake_wire_destroy(&wire);
    return ret;
}

static void test_cut(void)
{
    static const size_t pieces[] = { 0, 1, 7 };
    g_autoptr(GByteArray) buf = whole_conversation();

    for (int i = 0; i < ARRAY_SIZE(pieces); i++) {
        g_assert_cmpint(converse(buf, 0, pieces[i]), ==, 0);
        for (size_t len = 1; len < buf->len; len++) {
            g_assert_cmpint(converse(buf, len, pieces[i]), ==, -1);
        }
        g_assert_cmpint(converse(buf, buf->len, pieces[i]), ==, 2);
    }
}

/* The text matters: it is all that a person learns about a lost connection */
static void test_cut_message(void)
{
    g_autoptr(GByteArray) buf = whole_conversation();
    HandshakeHeader header;
    HandshakeWire wire;

    wire_open(&wire, buf->data, 72, 0);
    g_assert_cmpint(handshake_wire_read_header(&wire, &header, &error_abort),
                    ==, 1);
    assert_refuses(&wire, "closed the connection");
    handshake_wire_destroy(&wire);
}

/* What follows the last frame is the migration stream's */
static void test_trickle(void)
{
    static const size_t pieces[] = { 0, 1, 2, 3, 63, 64, 65 };

    for (int i = 0; i < ARRAY_SIZE(pieces); i++) {
        g_autoptr(GByteArray) buf = whole_conversation();
        size_t len = buf->len;
        HandshakeHeader header;
        HandshakeWire wire;
        TestChannel *chan;
        char rest[4];

        g_byte_array_append(buf, (const uint8_t *)"QEVM\0\0\0\3", 8);
        chan = wire_open(&wire, buf->data, buf->len, pieces[i]);
        g_assert_cmpint(handshake_wire_read_header(&wire, &header,
                                                   &error_abort), ==, 1);
        g_assert_cmpuint(chan->pos, ==, 72);
        assert_header(&header);
        assert_reads(&wire, HANDSHAKE_FRAME_HELLO, HELLO_TEXT);
        g_assert_cmpuint(chan->pos, ==, len);
        g_assert_cmpuint(wire.bytes_received, ==, len);
        g_assert_cmpuint(wire.unknown_frames, ==, 1);
        g_assert_cmpint(qio_channel_read_all(wire.ioc, rest, sizeof(rest),
                                             &error_abort), ==, 0);
        g_assert_cmpmem(rest, sizeof(rest), "QEVM", 4);
        handshake_wire_destroy(&wire);
    }
}

static void test_send(void)
{
    static const size_t pieces[] = { 0, 1, 7 };

    for (int i = 0; i < ARRAY_SIZE(pieces); i++) {
        g_autoptr(GByteArray) buf = whole_conversation();
        g_autoptr(GByteArray) copy = whole_conversation();
        g_autofree char *digest = NULL;
        g_autofree char *expected = NULL;
        HandshakeWire wire;
        TestChannel *chan = wire_open(&wire, NULL, 0, pieces[i]);

        g_assert_true(handshake_wire_send(&wire, buf, &error_abort));
        g_assert_cmpuint(buf->len, ==, 0);
        g_assert_cmpmem(chan->out->data, chan->out->len, copy->data, copy->len);
        g_assert_cmpuint(wire.bytes_sent, ==, copy->len);
        g_assert_cmpuint(wire.bytes_received, ==, 0);

        put_frame(buf, HANDSHAKE_FRAME_COMMIT, 0, "{}");
        put_frame(copy, HANDSHAKE_FRAME_COMMIT, 0, "{}");
        g_assert_true(handshake_wire_send(&wire, buf, &error_abort));
        g_assert_cmpmem(chan->out->data, chan->out->len, copy->data, copy->len);
        g_assert_cmpuint(wire.bytes_sent, ==, copy->len);

        expected = g_compute_checksum_for_data(G_CHECKSUM_SHA256,
                                               copy->data, copy->len);
        digest = handshake_wire_digest(&wire);
        g_assert_cmpstr(digest, ==, expected);
        handshake_wire_destroy(&wire);
    }
}

static void test_send_fails(void)
{
    g_autoptr(GByteArray) buf = whole_conversation();
    size_t len = buf->len;

    for (size_t room = 0; room < len; room++) {
        HandshakeWire wire;
        TestChannel *chan = wire_open(&wire, NULL, 0, 5);
        Error *err = NULL;

        chan->room = room;
        g_assert_false(handshake_wire_send(&wire, buf, &err));
        assert_fails(&err, "no room");
        g_assert_cmpuint(buf->len, ==, len);
        handshake_wire_destroy(&wire);
    }
}

static GByteArray *whole_answer(void)
{
    GByteArray *buf = g_byte_array_new();

    put_header(buf, 64);
    put_frame(buf, 0x4a4a, 0, "{}");
    put_frame(buf, HANDSHAKE_FRAME_ACCEPT, 1, "{}");
    return buf;
}

/* Of all that was sent and received until it is taken, in this order */
static void test_digest(void)
{
    g_autoptr(GByteArray) answer = whole_answer();
    size_t answer_len = answer->len;
    g_autoptr(GByteArray) request = whole_conversation();
    g_autoptr(GByteArray) all = whole_conversation();
    g_autofree char *expected = NULL;
    g_autofree char *digest = NULL;
    HandshakeHeader header;
    HandshakeWire wire;

    g_byte_array_append(all, answer->data, answer->len);
    expected = g_compute_checksum_for_data(G_CHECKSUM_SHA256, all->data,
                                           all->len);
    /* What comes after the verdict is not part of what was agreed on */
    put_frame(answer, 0x3a3a, 0, "{}");
    put_frame(answer, HANDSHAKE_FRAME_COMMIT, 0, "{}");

    wire_open(&wire, answer->data, answer->len, 1);
    g_assert_true(handshake_wire_send(&wire, request, &error_abort));
    g_assert_cmpint(handshake_wire_read_header(&wire, &header, &error_abort),
                    ==, 1);
    assert_reads(&wire, HANDSHAKE_FRAME_ACCEPT, "{}");
    g_assert_cmpuint(wire.bytes_received, ==, answer_len);
    digest = handshake_wire_digest(&wire);
    g_assert_cmpstr(digest, ==, expected);

    /* It is taken, and the conversation goes on */
    g_assert_null(wire.transcript);
    assert_reads(&wire, HANDSHAKE_FRAME_COMMIT, "{}");
    put_frame(request, HANDSHAKE_FRAME_COMMIT, 0, "{}");
    g_assert_true(handshake_wire_send(&wire, request, &error_abort));
    g_assert_cmpuint(wire.bytes_received, ==, answer->len);
    handshake_wire_destroy(&wire);
}

static void test_lifetime(void)
{
    TestChannel *chan = TEST_CHANNEL(object_new(TYPE_TEST_CHANNEL));
    HandshakeWire wire = { 0 };

    handshake_wire_destroy(&wire);

    handshake_wire_init(&wire, QIO_CHANNEL(chan));
    g_assert_cmpuint(OBJECT(chan)->ref, ==, 2);
    g_assert_cmpuint(wire.bytes_sent, ==, 0);
    g_assert_cmpuint(wire.bytes_received, ==, 0);
    g_assert_cmpuint(wire.unknown_frames, ==, 0);
    handshake_wire_destroy(&wire);
    g_assert_cmpuint(OBJECT(chan)->ref, ==, 1);
    g_assert_null(wire.ioc);
    handshake_wire_destroy(&wire);
    g_assert_cmpuint(OBJECT(chan)->ref, ==, 1);
    object_unref(OBJECT(chan));
}

/* A peer that never stops does not hold us for ever */
static void test_drain_bounded(void)
{
    HandshakeWire wire;
    TestChannel *chan = wire_open(&wire, NULL, 0, 0);

    chan->endless = true;
    handshake_wire_drain(&wire);
    g_assert_true(chan->shut_down);
    /* All that it may have sent already, but not much more */
    g_assert_cmpuint(chan->pos, >=, 16 * 128 * 1024);
    g_assert_cmpuint(chan->pos, <=, 4 * 1024 * 1024);
    handshake_wire_destroy(&wire);
}

static void test_drain_to_eof(void)
{
    g_autofree char *junk = g_malloc0(100000);
    HandshakeWire wire;
    TestChannel *chan = wire_open(&wire, junk, 100000, 1000);

    handshake_wire_drain(&wire);
    g_assert_true(chan->shut_down);
    g_assert_cmpuint(chan->pos, ==, 100000);
    handshake_wire_destroy(&wire);
}

static const struct {
    const char *name;
    void (*func)(void);
} tests[] = {
    { "header/layout", test_header_layout },
    { "header/roundtrip", test_header_roundtrip },
    { "header/length", test_header_length },
    { "header/pieces", test_header_pieces },
    { "header/foreign", test_header_foreign },
    { "header/name", test_header_name },
    { "frame/layout", test_frame_layout },
    { "frame/types", test_frame_types },
    { "frame/bounds", test_frame_bounds },
    { "frame/payload", test_frame_payload },
    { "unknown/skipped", test_unknown_skipped },
    { "unknown/critical", test_unknown_critical },
    { "unknown/many", test_unknown_many },
    { "cut", test_cut },
    { "cut/message", test_cut_message },
    { "trickle", test_trickle },
    { "send", test_send },
    { "send/fails", test_send_fails },
    { "digest", test_digest },
    { "lifetime", test_lifetime },
    { "drain/bounded", test_drain_bounded },
    { "drain/to-eof", test_drain_to_eof },
};

int main(int argc, char **argv)
{
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&test_channel_info);

    g_test_init(&argc, &argv, NULL);

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strconcat("/migration/handshake/wire/", tests[i].name, NULL);

        g_test_add_func(path, tests[i].func);
    }
    return g_test_run();
}
