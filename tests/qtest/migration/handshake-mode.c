/*
 * The migration tests over channels of type 'handshake'
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qapi/error.h"
#include "qemu/sockets.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "migration/handshake-mode.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"

/* Tests that cannot be moved: prefixes of their names */
static const struct {
    const char *name;
    const char *why;
} stays[] = {
    { "/migration/handshake/", "says itself what it wants" },
    { "/migration/analyze-script", "a file has no peer" },
    { "/migration/precopy/file", "a file has no peer" },
    { "/migration/multifd/file/", "a file has no peer" },
    { "/migration/precopy/fd/", "nobody can connect to an fd again" },
    { "/migration/mode/", "mode is not 'normal'" },
    { "/migration/validate_uri/", "nothing is migrated" },
    { "/migration/vcpu_dirty_limit", "nothing is migrated" },
    { "/migration/postcopy/recovery/double-failures/",
      "a stranger cannot make a paused destination recover" },
};

/* Tests whose destination exits, and over a handshake lives and listens */
static const char *const survives[] = {
    "/migration/validate_uuid_error",
    "/migration/precopy/unix/tls/x509/default-host",
    "/migration/precopy/tcp/tls/x509/mismatch-host",
};

/*
 * Tests whose destination fails, and over a handshake listens if the source was
 * quick enough to cancel before the stream began
 */
static const char *const cancels[] = {
    "/migration/cancel/src/after/setup",
    "/migration/cancel/src/after/cancelling",
    "/migration/cancel/src/after/cancelled",
};

static struct {
    const char *optional;       /* NULL: not in this mode */
    bool moved;                 /* 'migrate' has been */
    bool listens;               /* the destination was told to */
    bool survives;
    bool cancels;
    QTestState *to;
} mode;

bool handshake_mode_begin(const char *name)
{
    memset(&mode, 0, sizeof(mode));
    mode.optional = getenv("QTEST_MIGRATION_HANDSHAKE");
    for (int i = 0; i < ARRAY_SIZE(stays) && mode.optional; i++) {
        if (g_str_has_prefix(name, stays[i].name)) {
            g_test_skip(stays[i].why);
            mode.optional = NULL;
            return false;
        }
    }
    for (int i = 0; i < ARRAY_SIZE(survives); i++) {
        mode.survives |= !strcmp(name, survives[i]);
    }
    for (int i = 0; i < ARRAY_SIZE(cancels); i++) {
        mode.cancels |= !strcmp(name, cancels[i]);
    }
    return true;
}

/* The only channel, from a URI as the tests have them */
static QDict *channel_from_uri(const char *uri)
{
    const char *rest;
    QDict *addr;

    if (strstart(uri, "unix:", &rest)) {
        addr = qdict_from_jsonf_nofail("{ 'transport': 'socket',"
                                       "  'type': 'unix', 'path': %s }", rest);
    } else if (strstart(uri, "tcp:", &rest)) {
        const char *colon = strrchr(rest, ':');
        g_autofree char *host = g_strndup(rest, colon - rest);

        addr = qdict_from_jsonf_nofail("{ 'transport': 'socket',"
                                       "  'type': 'inet', 'host': %s,"
                                       "  'port': %s }", host, colon + 1);
    } else {
        g_test_message("%s should not be moved", uri);
        g_assert_not_reached();
    }
    return qdict_from_jsonf_nofail("{ 'channel-type': 'handshake',"
                                   "  'addr': %p }", addr);
}

/* Moves the only channel of a command's arguments */
static void move_channel(QDict *args)
{
    QList *channels = qobject_to(QList, qdict_get(args, "channels"));

    if (channels) {
        QDict *channel = qobject_to(QDict, qlist_peek(channels));

        g_assert_cmpint(qlist_size(channels), ==, 1);
        g_assert_cmpstr(qdict_get_str(channel, "channel-type"), ==, "main");
        qdict_put_str(channel, "channel-type", "handshake");
    } else {
        channels = qlist_new();
        qlist_append(channels, channel_from_uri(qdict_get_str(args, "uri")));
        qdict_put(args, "channels", channels);
        qdict_del(args, "uri");
    }
}

char *handshake_mode_incoming_option(const char *uri)
{
    g_autoptr(QDict) channel = NULL;
    g_autoptr(GString) json = NULL;

    if (!mode.optional || !strcmp(uri, "defer")) {
        return g_strdup(uri);
    }
    mode.listens = true;
    channel = channel_from_uri(uri);
    json = qobject_to_json(QOBJECT(channel));
    return g_strdup_printf("'%s'", json->str);
}

void handshake_mode_start(QTestState *to)
{
    mode.to = to;
}

void handshake_mode_incoming(QDict *args)
{
    if (mode.optional) {
        move_channel(args);
        mode.listens = true;
    }
}

void handshake_mode_outgoing(QDict *args)
{
    if (!mode.optional || qdict_get_try_bool(args, "resume", false)) {
        return;
    }
    move_channel(args);
    if (strcmp(mode.optional, "default")) {
        QDict *options = qdict_new();

        qdict_put_obj(options, "optional-capabilities",
                      qobject_from_json(mode.optional, &error_abort));
        qdict_put(args, "handshake", options);
    }
    mode.moved = true;
}

const char *handshake_mode_channel_type(void)
{
    return mode.optional ? "handshake" : "main";
}

bool handshake_mode_keeps_from(QTestState *who, const char *setting)
{
    /* What each side decides for itself */
    return mode.optional && who == mode.to &&
           strcmp(setting, "events") && strcmp(setting, "postcopy-blocktime") &&
           !g_str_has_prefix(setting, "tls-");
}

/* Fails unless somebody takes connections where @to says that it listens */
static void assert_listens(QTestState *to)
{
    QDict *rsp = migrate_query(to);
    QList *list = qdict_get_qlist(rsp, "socket-address");
    QDict *addr = qobject_to(QDict, qlist_peek(list));
    const char *path = qdict_get_try_str(addr, "path");
    g_autofree char *text = path
        ? g_strdup_printf("unix:%s", path)
        : g_strdup_printf("%s:%s", qdict_get_str(addr, "host"),
                          qdict_get_str(addr, "port"));
    SocketAddress *saddr = socket_parse(text, &error_abort);

    g_assert_cmpstr(qdict_get_str(rsp, "status"), ==, "setup");
    close(socket_connect(saddr, &error_abort));
    qapi_free_SocketAddress(saddr);
    qobject_unref(rsp);
}

bool handshake_mode_listens(QTestState *who, const char *status,
                            const char *goal)
{
    return mode.optional && mode.cancels && who == mode.to &&
           !strcmp(goal, "failed") && !strcmp(status, "setup");
}

/* Whether a capability is on that only a handshake can have switched on */
static bool has_negotiated_left(QTestState *to)
{
    static const char *const negotiable[] = {
        "postcopy-ram", "return-path", "multifd", "dirty-bitmaps",
        "x-ignore-shared", "postcopy-preempt", "switchover-ack",
    };
    bool found = false;

    for (int i = 0; i < ARRAY_SIZE(negotiable); i++) {
        found |= capability_is_on(to, negotiable[i]);
    }
    return found;
}

void handshake_mode_end(QTestState *to)
{
    QDict *rsp;
    bool completed;

    if (!mode.optional) {
        return;
    }
    g_assert_true(mode.moved);
    if (mode.survives) {
        /* QEMU 11.0 has two tests that forget to let it listen */
        if (mode.listens) {
            assert_listens(to);
        }
        qtest_set_expected_status(to, EXIT_SUCCESS);
    }

    rsp = migrate_query(to);
    completed = !g_strcmp0(qdict_get_try_str(rsp, "status"), "completed");
    qobject_unref(rsp);
    g_assert_false(completed && has_negotiated_left(to));
}
