/*
 * Migration handshake: the named channels of a session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "io/channel-null.h"
#include "../migration/handshake-channels.h"

#define MULTIFD HANDSHAKE_CHANNEL_MULTIFD
#define PREEMPT HANDSHAKE_CHANNEL_PREEMPT

/* More multifd channels than this cannot be asked for */
#define MULTIFD_MAX 255

static const QemuUUID session = {
    .data = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 }
};

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

static HandshakeHeader header_for(const char *name, uint32_t index)
{
    HandshakeHeader header = { .session = session, .index = index };

    g_assert_cmpuint(strlen(name), <=, HANDSHAKE_NAME_SIZE);
    pstrcpy(header.name, sizeof(header.name), name);
    return header;
}

static void assert_missing(const HandshakeChannels *channels, unsigned multifd,
                           unsigned all)
{
    g_assert_cmpuint(handshake_channels_missing(channels, false), ==, multifd);
    g_assert_cmpuint(handshake_channels_missing(channels, true), ==, all);
}

static void add(HandshakeChannels *channels, const char *name, uint32_t index,
                QIOChannel *ioc)
{
    HandshakeHeader header = header_for(name, index);
    uint32_t ref = OBJECT(ioc)->ref;

    g_assert_true(handshake_channels_add(channels, &header, ioc,
                                         &error_abort));
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, ref + 1);
}

/*
 * @header must be refused with an error that has @why in it, and says which
 * channel it is about.  Nothing may come of it.
 */
static void refuse_header(HandshakeChannels *channels,
                          const HandshakeHeader *header, const char *why)
{
    g_autofree char *which = g_strdup_printf("'%s' %" PRIu32, header->name,
                                             header->index);
    unsigned multifd = handshake_channels_missing(channels, false);
    unsigned all = handshake_channels_missing(channels, true);
    QIOChannel *ioc = channel_new();
    Error *err = NULL;

    if (handshake_channels_add(channels, header, ioc, &err)) {
        g_error("%s was taken, but expected '%s'", which, why);
    }
    g_assert_nonnull(err);
    if (!strstr(error_get_pretty(err), why) ||
        !strstr(error_get_pretty(err), which)) {
        g_error("expected '%s' and %s in '%s'", why, which,
                error_get_pretty(err));
    }
    error_free(err);
    /* The caller need not want to know */
    g_assert_false(handshake_channels_add(channels, header, ioc, NULL));

    assert_missing(channels, multifd, all);
    channel_free(ioc);
}

#define FOREIGN     "is of another session"
#define NO_PLACE    "has no channel"
#define AGAIN       "comes a second time"

static void refuse(HandshakeChannels *channels, const char *name,
                   uint32_t index, const char *why)
{
    HandshakeHeader header = header_for(name, index);

    refuse_header(channels, &header, why);
}

/* Takes what must be @ioc, and drops it */
static void take(HandshakeChannels *channels, const char *name, uint32_t index,
                 QIOChannel *ioc)
{
    uint32_t ref = OBJECT(ioc)->ref;
    QIOChannel *taken = handshake_channels_take(channels, name, index);

    g_assert_true(taken == ioc);
    /* Its reference is ours now */
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, ref);
    object_unref(OBJECT(taken));
}

/* The names are laid down in the specification */
static void test_names(void)
{
    g_assert_cmpstr(HANDSHAKE_CHANNEL_MAIN, ==, "main");
    g_assert_cmpstr(HANDSHAKE_CHANNEL_MULTIFD, ==, "multifd");
    g_assert_cmpstr(HANDSHAKE_CHANNEL_PREEMPT, ==, "preempt");
}

static void test_new(void)
{
    static const unsigned counts[] = { 0, 1, 2, 8, MULTIFD_MAX };

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        for (int preempt = 0; preempt < 2; preempt++) {
            g_autoptr(HandshakeChannels) channels =
                handshake_channels_new(&session, counts[i], preempt);

            g_assert_cmpuint(handshake_channels_multifd(channels), ==,
                             counts[i]);
            assert_missing(channels, counts[i], counts[i] + preempt);
        }
    }
}

/* The caller may use its own for something else */
static void test_session_copied(void)
{
    QemuUUID id = session;
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&id, 1, false);
    QIOChannel *ioc = channel_new();
    HandshakeHeader header;

    memset(&id, 0xff, sizeof(id));
    header = header_for(MULTIFD, 0);
    header.session = id;
    refuse_header(channels, &header, FOREIGN);
    add(channels, MULTIFD, 0, ioc);
    take(channels, MULTIFD, 0, ioc);
    channel_free(ioc);
}

static void test_session(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, true);
    QIOChannel *ioc = channel_new();

    add(channels, MULTIFD, 1, ioc);
    for (int bit = 0; bit < 8 * sizeof(session); bit++) {
        HandshakeHeader header = header_for(MULTIFD, 0);

        header.session.data[bit / 8] ^= 1 << bit % 8;
        refuse_header(channels, &header, FOREIGN);
        /* It is none of ours, so what else is wrong with it does not matter */
        header.index = 1;
        refuse_header(channels, &header, FOREIGN);
        header.index = 2;
        refuse_header(channels, &header, FOREIGN);
        header = header_for(PREEMPT, 0);
        header.session.data[bit / 8] ^= 1 << bit % 8;
        refuse_header(channels, &header, FOREIGN);
    }
    assert_missing(channels, 1, 2);

    /* Like a main channel's */
    for (int i = 0; i < 2; i++) {
        HandshakeHeader header = header_for(i ? PREEMPT : MULTIFD, 0);

        memset(&header.session, 0, sizeof(header.session));
        refuse_header(channels, &header, FOREIGN);
    }
    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
    take(channels, MULTIFD, 1, ioc);
    channel_free(ioc);
}

static void test_unknown_name(void)
{
    static const char *const names[] = {
        "", "main", "Multifd", "multif", "multifd0", "multifd ", " multifd",
        "preemp", "preempt0", "Preempt", "postcopy-preempt", "colo",
        "grease-00000000", "multifdmultifdmu",
    };
    static const uint32_t indices[] = { 0, 1, 2, UINT32_MAX };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        for (int j = 0; j < ARRAY_SIZE(indices); j++) {
            g_autoptr(HandshakeChannels) channels =
                handshake_channels_new(&session, 2, true);

            refuse(channels, names[i], indices[j], NO_PLACE);
            assert_missing(channels, 2, 3);
            g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
            g_assert_null(handshake_channels_take(channels, MULTIFD, 1));
            g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
        }
    }
}

static void test_index(void)
{
    static const unsigned counts[] = { 0, 1, 2, 8, MULTIFD_MAX };

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        const uint32_t outside[] = {
            counts[i], counts[i] + 1, 256, 257, 0x7fffffff, 0x80000000u,
            0x80000000u + counts[i], UINT32_MAX - 1, UINT32_MAX,
        };
        g_autoptr(HandshakeChannels) channels =
            handshake_channels_new(&session, counts[i], true);
        QIOChannel *ioc;

        for (int j = 0; j < ARRAY_SIZE(outside); j++) {
            refuse(channels, MULTIFD, outside[j], NO_PLACE);
        }
        assert_missing(channels, counts[i], counts[i] + 1);
        if (!counts[i]) {
            continue;
        }
        /* But the one before */
        ioc = channel_new();
        add(channels, MULTIFD, counts[i] - 1, ioc);
        assert_missing(channels, counts[i] - 1, counts[i]);
        take(channels, MULTIFD, counts[i] - 1, ioc);
        channel_free(ioc);
    }
}

static void test_no_multifd(void)
{
    for (int preempt = 0; preempt < 2; preempt++) {
        g_autoptr(HandshakeChannels) channels =
            handshake_channels_new(&session, 0, preempt);
        QIOChannel *ioc = channel_new();

        g_assert_cmpuint(handshake_channels_multifd(channels), ==, 0);
        assert_missing(channels, 0, preempt);
        refuse(channels, MULTIFD, 0, NO_PLACE);
        refuse(channels, MULTIFD, UINT32_MAX, NO_PLACE);
        if (preempt) {
            add(channels, PREEMPT, 0, ioc);
            assert_missing(channels, 0, 0);
            take(channels, PREEMPT, 0, ioc);
        } else {
            refuse(channels, PREEMPT, 0, NO_PLACE);
        }
        channel_free(ioc);
    }
}

static void test_preempt(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 1, true);
    QIOChannel *ioc = channel_new();

    /* There is but one */
    refuse(channels, PREEMPT, 1, NO_PLACE);
    refuse(channels, PREEMPT, 0x80000000u, NO_PLACE);
    refuse(channels, PREEMPT, UINT32_MAX, NO_PLACE);
    assert_missing(channels, 1, 2);

    add(channels, PREEMPT, 0, ioc);
    assert_missing(channels, 1, 1);
    refuse(channels, PREEMPT, 0, AGAIN);
    refuse(channels, PREEMPT, 1, NO_PLACE);
    /* No multifd channel has come with it */
    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    take(channels, PREEMPT, 0, ioc);
    assert_missing(channels, 1, 1);
    channel_free(ioc);
}

static void test_preempt_not_wanted(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, false);

    assert_missing(channels, 2, 2);
    refuse(channels, PREEMPT, 0, NO_PLACE);
    refuse(channels, PREEMPT, 1, NO_PLACE);
    /* Who delivers asks for it in any case */
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
}

/* It may be the first one, or the last one */
static void test_missing(void)
{
    for (unsigned when = 0; when <= 3; when++) {
        for (int all = 0; all < 2; all++) {
            g_autoptr(HandshakeChannels) channels =
                handshake_channels_new(&session, 3, true);
            QIOChannel *ioc = channel_new();
            unsigned preempt = 1;

            for (unsigned i = 0; i < 4; i++) {
                if (i == when) {
                    add(channels, PREEMPT, 0, ioc);
                    preempt = 0;
                } else {
                    add(channels, MULTIFD, i - (i > when), ioc);
                }
                g_assert_cmpuint(handshake_channels_missing(channels, all), ==,
                                 3 - (i + preempt) + (all ? preempt : 0));
            }
            assert_missing(channels, 0, 0);
            handshake_channels_free(g_steal_pointer(&channels));
            channel_free(ioc);
        }
    }
}

static void test_again(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 3, true);
    QIOChannel *multifd = channel_new();
    QIOChannel *preempt = channel_new();

    add(channels, MULTIFD, 1, multifd);
    add(channels, PREEMPT, 0, preempt);
    for (int i = 0; i < 2; i++) {
        refuse(channels, MULTIFD, 1, AGAIN);
        refuse(channels, PREEMPT, 0, AGAIN);
    }
    assert_missing(channels, 2, 2);
    /* It is the first one that counts */
    take(channels, MULTIFD, 1, multifd);
    take(channels, PREEMPT, 0, preempt);
    channel_free(multifd);
    channel_free(preempt);
}

/* The very same channel, too */
static void test_again_same(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, false);
    QIOChannel *ioc = channel_new();
    HandshakeHeader header = header_for(MULTIFD, 0);
    g_autoptr(Error) err = NULL;

    add(channels, MULTIFD, 0, ioc);
    g_assert_false(handshake_channels_add(channels, &header, ioc, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), AGAIN));
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, 2);
    assert_missing(channels, 1, 1);
    take(channels, MULTIFD, 0, ioc);
    channel_free(ioc);
}

/* What was taken has been there all the same */
static void test_again_taken(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, true);
    QIOChannel *multifd = channel_new();
    QIOChannel *preempt = channel_new();

    add(channels, MULTIFD, 0, multifd);
    add(channels, PREEMPT, 0, preempt);
    take(channels, MULTIFD, 0, multifd);
    take(channels, PREEMPT, 0, preempt);
    assert_missing(channels, 1, 1);

    refuse(channels, MULTIFD, 0, AGAIN);
    refuse(channels, PREEMPT, 0, AGAIN);
    assert_missing(channels, 1, 1);
    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
    channel_free(multifd);
    channel_free(preempt);
}

/* A failure leaves the place to the one that belongs there */
static void test_add_after_failure(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 1, true);
    QIOChannel *ioc = channel_new();
    const char *const names[] = { MULTIFD, PREEMPT };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        HandshakeHeader header = header_for(names[i], 0);

        header.session.data[15]++;
        refuse_header(channels, &header, FOREIGN);
        refuse(channels, names[i], 1, NO_PLACE);
        add(channels, names[i], 0, ioc);
        take(channels, names[i], 0, ioc);
    }
    assert_missing(channels, 0, 0);
    channel_free(ioc);
}

static void test_take_early(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, true);
    QIOChannel *ioc = channel_new();

    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    g_assert_null(handshake_channels_take(channels, MULTIFD, 1));
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
    /* Asking does no harm */
    assert_missing(channels, 2, 3);
    add(channels, MULTIFD, 0, ioc);
    g_assert_null(handshake_channels_take(channels, MULTIFD, 1));
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
    add(channels, PREEMPT, 0, ioc);
    g_assert_null(handshake_channels_take(channels, MULTIFD, 1));
    take(channels, MULTIFD, 0, ioc);
    take(channels, PREEMPT, 0, ioc);
    channel_free(ioc);
}

static void test_take_twice(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 1, true);
    QIOChannel *ioc = channel_new();

    add(channels, MULTIFD, 0, ioc);
    add(channels, PREEMPT, 0, ioc);
    take(channels, MULTIFD, 0, ioc);
    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    g_assert_null(handshake_channels_take(channels, MULTIFD, 0));
    take(channels, PREEMPT, 0, ioc);
    g_assert_null(handshake_channels_take(channels, PREEMPT, 0));
    assert_missing(channels, 0, 0);
    channel_free(ioc);
}

/* Nobody should ask for those, but nothing is read beyond the end */
static void test_take_nonsense(void)
{
    static const uint32_t outside[] = {
        2, 3, 255, 256, 0x80000000u, UINT32_MAX
    };
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 2, true);
    QIOChannel *iocs[] = { channel_new(), channel_new(), channel_new() };

    add(channels, MULTIFD, 0, iocs[0]);
    add(channels, MULTIFD, 1, iocs[1]);
    add(channels, PREEMPT, 0, iocs[2]);
    for (int i = 0; i < ARRAY_SIZE(outside); i++) {
        g_assert_null(handshake_channels_take(channels, MULTIFD, outside[i]));
        g_assert_null(handshake_channels_take(channels, PREEMPT, outside[i]));
    }
    g_assert_null(handshake_channels_take(channels, PREEMPT, 1));
    g_assert_null(handshake_channels_take(channels, "main", 0));
    g_assert_null(handshake_channels_take(channels, "", 0));
    for (int i = 0; i < ARRAY_SIZE(iocs); i++) {
        g_assert_cmpuint(OBJECT(iocs[i])->ref, ==, 2);
    }
    handshake_channels_free(g_steal_pointer(&channels));
    for (int i = 0; i < ARRAY_SIZE(iocs); i++) {
        channel_free(iocs[i]);
    }
}

static void test_references(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 3, true);
    QIOChannel *kept = channel_new();
    QIOChannel *taken = channel_new();
    QIOChannel *preempt = channel_new();
    QIOChannel *got;

    add(channels, MULTIFD, 0, kept);
    add(channels, MULTIFD, 2, taken);
    add(channels, PREEMPT, 0, preempt);

    /* The collection alone keeps it */
    object_unref(OBJECT(taken));
    got = handshake_channels_take(channels, MULTIFD, 2);
    g_assert_true(got == taken);
    g_assert_cmpuint(OBJECT(got)->ref, ==, 1);

    /* It drops what nobody has taken, and nothing else */
    handshake_channels_free(g_steal_pointer(&channels));
    channel_free(kept);
    channel_free(preempt);
    channel_free(got);
}

static void test_references_preempt_taken(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, 1, true);
    QIOChannel *multifd = channel_new();
    QIOChannel *preempt = channel_new();
    QIOChannel *got;

    add(channels, MULTIFD, 0, multifd);
    add(channels, PREEMPT, 0, preempt);
    object_unref(OBJECT(preempt));
    got = handshake_channels_take(channels, PREEMPT, 0);
    g_assert_true(got == preempt);
    handshake_channels_free(g_steal_pointer(&channels));
    channel_free(got);
    channel_free(multifd);
}

static void test_free(void)
{
    QIOChannel *ioc = channel_new();

    handshake_channels_free(NULL);
    /* None has come; some, in all places that there are */
    for (int i = 0; i < 8; i++) {
        HandshakeChannels *channels =
            handshake_channels_new(&session, i & 4 ? 2 : 0, true);

        if (i & 1) {
            add(channels, PREEMPT, 0, ioc);
        }
        if (i & 2 && i & 4) {
            add(channels, MULTIFD, 0, ioc);
            add(channels, MULTIFD, 1, ioc);
        }
        handshake_channels_free(channels);
        g_assert_cmpuint(OBJECT(ioc)->ref, ==, 1);
    }
    channel_free(ioc);
}

/* As many as there can be, in no particular order */
static void test_many(void)
{
    g_autoptr(HandshakeChannels) channels =
        handshake_channels_new(&session, MULTIFD_MAX, true);
    QIOChannel *iocs[MULTIFD_MAX];
    QIOChannel *preempt = channel_new();

    for (unsigned i = 0; i < MULTIFD_MAX; i++) {
        /* 101 and 255 have no divisor in common, so each comes once */
        unsigned index = (i * 101 + 7) % MULTIFD_MAX;

        assert_missing(channels, MULTIFD_MAX - i,
                       MULTIFD_MAX - i + (i <= 100));
        iocs[index] = channel_new();
        add(channels, MULTIFD, index, iocs[index]);
        refuse(channels, MULTIFD, index, AGAIN);
        if (i == 100) {
            add(channels, PREEMPT, 0, preempt);
        }
    }
    assert_missing(channels, 0, 0);
    refuse(channels, MULTIFD, MULTIFD_MAX, NO_PLACE);
    g_assert_cmpuint(handshake_channels_multifd(channels), ==, MULTIFD_MAX);

    /* Each is where it belongs */
    for (unsigned i = 0; i < MULTIFD_MAX; i += 2) {
        take(channels, MULTIFD, i, iocs[i]);
        channel_free(iocs[i]);
    }
    handshake_channels_free(g_steal_pointer(&channels));
    for (unsigned i = 1; i < MULTIFD_MAX; i += 2) {
        channel_free(iocs[i]);
    }
    channel_free(preempt);
}

/* One session's channels are nothing to another one */
static void test_two_sessions(void)
{
    QemuUUID other = { .data = { 0xff } };
    g_autoptr(HandshakeChannels) first =
        handshake_channels_new(&session, 2, true);
    g_autoptr(HandshakeChannels) second =
        handshake_channels_new(&other, 1, true);
    QIOChannel *ioc = channel_new();
    HandshakeHeader header = header_for(MULTIFD, 0);

    add(first, MULTIFD, 0, ioc);
    add(first, PREEMPT, 0, ioc);
    assert_missing(first, 1, 1);
    assert_missing(second, 1, 2);
    refuse_header(second, &header, FOREIGN);

    header.session = other;
    refuse_header(first, &header, FOREIGN);
    g_assert_true(handshake_channels_add(second, &header, ioc, &error_abort));
    assert_missing(first, 1, 1);
    assert_missing(second, 0, 1);
    handshake_channels_free(g_steal_pointer(&first));
    g_assert_cmpuint(OBJECT(ioc)->ref, ==, 2);
    take(second, MULTIFD, 0, ioc);
    channel_free(ioc);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);

    g_test_add_func("/migration/handshake/channels/names", test_names);
    g_test_add_func("/migration/handshake/channels/new", test_new);
    g_test_add_func("/migration/handshake/channels/session", test_session);
    g_test_add_func("/migration/handshake/channels/session/copied",
                    test_session_copied);
    g_test_add_func("/migration/handshake/channels/unknown-name",
                    test_unknown_name);
    g_test_add_func("/migration/handshake/channels/index", test_index);
    g_test_add_func("/migration/handshake/channels/no-multifd",
                    test_no_multifd);
    g_test_add_func("/migration/handshake/channels/preempt", test_preempt);
    g_test_add_func("/migration/handshake/channels/preempt/not-wanted",
                    test_preempt_not_wanted);
    g_test_add_func("/migration/handshake/channels/missing", test_missing);
    g_test_add_func("/migration/handshake/channels/again", test_again);
    g_test_add_func("/migration/handshake/channels/again/same",
                    test_again_same);
    g_test_add_func("/migration/handshake/channels/again/taken",
                    test_again_taken);
    g_test_add_func("/migration/handshake/channels/add-after-failure",
                    test_add_after_failure);
    g_test_add_func("/migration/handshake/channels/take/early",
                    test_take_early);
    g_test_add_func("/migration/handshake/channels/take/twice",
                    test_take_twice);
    g_test_add_func("/migration/handshake/channels/take/nonsense",
                    test_take_nonsense);
    g_test_add_func("/migration/handshake/channels/references",
                    test_references);
    g_test_add_func("/migration/handshake/channels/references/preempt-taken",
                    test_references_preempt_taken);
    g_test_add_func("/migration/handshake/channels/free", test_free);
    g_test_add_func("/migration/handshake/channels/many", test_many);
    g_test_add_func("/migration/handshake/channels/two-sessions",
                    test_two_sessions);

    return g_test_run();
}
