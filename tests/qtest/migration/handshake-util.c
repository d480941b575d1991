/*
 * Helpers for tests of the migration handshake
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "libqtest.h"
#include "ppc-util.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

static const HandshakeMachine machines[] = {
    {
        .archs = { "x86_64", "i386" },
        .options = "-machine q35 -m 64 -nodefaults", .type = "pc-q35-",
        .other_options = "-machine pc", .other_type = "pc-i440fx-",
        .memory = "pc.ram", .first = "0000:00:01.0", .size = 64, .more = 96,
    }, {
        .archs = { "aarch64" },
        .options = "-machine virt -cpu max -m 64 -nodefaults", .type = "virt-",
        .other_options = "-machine virt-8.2", .other_type = "virt-8.2",
        .memory = "mach-virt.ram", .memory_start = 0x40000000,
        .first = "0000:00:01.0", .size = 64, .more = 96,
    }, {
        .archs = { "s390x" },
        .options = "-machine s390-ccw-virtio -m 64 -nodefaults",
        .type = "s390-ccw-virtio-",
        .other_options = "-machine s390-ccw-virtio-8.2",
        .other_type = "s390-ccw-virtio-8.2",
        .memory = "s390.ram", .first = "none", .size = 64, .more = 96,
    }, {
        .archs = { "ppc64" },
        .options = "-machine pseries," PSERIES_DEFAULT_CAPABILITIES
                   " -m 256 -nodefaults", .type = "pseries-",
        .other_options = "-machine pseries-8.2", .other_type = "pseries-8.2",
        .memory = "ppc_spapr.ram", .first = "pci@800000020000000:01.0",
        .size = 256, .more = 512,
    },
};

const HandshakeMachine *handshake_machine_or_null(void)
{
    for (int i = 0; i < ARRAY_SIZE(machines); i++) {
        const HandshakeMachine *m = &machines[i];
        g_auto(GStrv) words = g_strsplit_set(m->options, " ,", 3);

        if (g_strv_contains(m->archs, qtest_get_arch())) {
            return qtest_has_machine(words[1]) ? m : NULL;
        }
    }
    return NULL;
}

const HandshakeMachine *handshake_machine(void)
{
    static const HandshakeMachine *machine;

    if (!machine) {
        machine = handshake_machine_or_null();
        g_assert_nonnull(machine);
    }
    return machine;
}

QTestState *start_machine(const char *format, ...)
{
    g_autofree char *opts = NULL;
    va_list args;

    va_start(args, format);
    opts = g_strdup_vprintf(format, args);
    va_end(args);
    return qtest_initf("%s %s", handshake_machine()->options, opts);
}

char *memory_options(const char *type, const char *more)
{
    return g_strdup_printf("-object memory-backend-%s,id=ram,size=%uM%s "
                           "-machine memory-backend=ram", type,
                           handshake_machine()->size, more);
}

uint64_t used_memory(void)
{
    return handshake_machine()->memory_start + 16 * 1024 * 1024;
}

/* Those of ours say themselves what they want: see handshake-mode.h */
static bool has_mode(void)
{
    return getenv("QTEST_MIGRATION_HANDSHAKE");
}

void handshake_test_add(const char *path, void (*fn)(void))
{
    if (!has_mode()) {
        qtest_add_func(path, fn);
    }
}

void handshake_test_add_data(const char *path, const char *suffix,
                             void (*fn)(const void *))
{
    if (!has_mode()) {
        char *name = g_strconcat(path, suffix, NULL);

        qtest_add_data_func_full(name, name, fn, g_free);
    }
}

void listen_for_handshake(QTestState *to)
{
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'channels': [ " TCP_LISTEN " ] } }");
}

/* A destination that listens on a handshake channel */
QTestState *start_destination(const char *opts)
{
    QTestState *to = start_machine("-incoming defer %s", opts);

    listen_for_handshake(to);
    return to;
}

QTestState *start_source(const char *opts)
{
    QTestState *from = start_machine("%s", opts);

    /* Something that takes a while if the bandwidth is low */
    qtest_memset(from, used_memory(), 0x5a, 16 * 1024 * 1024);
    return from;
}

char *destination_port(QTestState *to)
{
    QDict *rsp = migrate_query(to);
    QList *list = qdict_get_qlist(rsp, "socket-address");
    QDict *addr = qobject_to(QDict, qlist_peek(list));
    char *port = g_strdup(qdict_get_str(addr, "port"));

    qobject_unref(rsp);
    return port;
}

/* 'migrate' with one channel of a type, and more arguments from a format */
void migrate_to_port(QTestState *from, const char *type,
                     const char *port, const char *options)
{
    QDict *args = qdict_from_jsonf_nofail(
        "{ 'channels': [ { 'channel-type': %s,"
        "    'addr': { 'transport': 'socket', 'type': 'inet',"
        "              'host': '127.0.0.1', 'port': %s } } ] }", type, port);

    if (options) {
        qdict_put_obj(args, "handshake", qobject_from_json(options,
                                                           &error_abort));
    }
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate',"
                             "  'arguments': %p }", args);
}

void migrate_to(QTestState *from, QTestState *to, const char *options)
{
    g_autofree char *port = destination_port(to);

    migrate_to_port(from, "handshake", port, options);
}

void migrate_to_unix(QTestState *from, const char *path)
{
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate', 'arguments': {"
                             "  'channels': [ {"
                             "    'channel-type': 'handshake',"
                             "    'addr': { 'transport': 'socket',"
                             "      'type': 'unix', 'path': %s } } ] } }",
                             path);
}

bool is_running(QTestState *who)
{
    QDict *rsp = qtest_qmp_assert_success_ref(who,
                                              "{ 'execute': 'query-status' }");
    bool running = qdict_get_bool(rsp, "running");

    qobject_unref(rsp);
    return running;
}

void wait_running(QTestState *who)
{
    for (int i = 0; i < PATIENCE; i++) {
        if (is_running(who)) {
            return;
        }
        g_usleep(1000);
    }
    g_assert_not_reached();
}

/* query-migrate once 'status' is as given; to be unreferenced by the caller */
QDict *wait_status(QTestState *who, const char *status)
{
    for (int i = 0; i < PATIENCE / 10; i++) {
        QDict *rsp = migrate_query(who);
        const char *now = qdict_get_try_str(rsp, "status");

        if (now && !strcmp(now, status)) {
            return rsp;
        }
        if (i == PATIENCE / 10 - 1) {
            g_test_message("status is '%s', not '%s'", now, status);
        }
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

/* The 'handshake' of query-migrate once its 'status' is as given */
QDict *wait_handshake(QTestState *who, const char *status)
{
    for (int i = 0; i < PATIENCE / 10; i++) {
        QDict *rsp = migrate_query(who);
        QDict *handshake = qdict_get_qdict(rsp, "handshake");

        if (handshake && !strcmp(qdict_get_str(handshake, "status"), status)) {
            handshake = qobject_ref(handshake);
            qobject_unref(rsp);
            return handshake;
        }
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

QDict *find_issue(QDict *handshake, const char *code)
{
    QList *issues = qdict_get_qlist(handshake, "issues");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(issues, entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(issue, "code"), code)) {
            return issue;
        }
    }
    return NULL;
}

bool list_contains(QDict *dict, const char *member, const char *item)
{
    QList *list = qdict_get_qlist(dict, member);
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(list, entry) {
        QString *str = qobject_to(QString, qlist_entry_obj(entry));

        if (str && !strcmp(qstring_get_str(str), item)) {
            return true;
        }
    }
    return false;
}

bool capability_is_on(QTestState *who, const char *capability)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'query-migrate-capabilities' }");
    const QListEntry *entry;
    bool on = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(item, "capability"), capability)) {
            on = qdict_get_bool(item, "state");
        }
    }
    qobject_unref(rsp);
    return on;
}

void wait_completed(QTestState *from, QTestState *to)
{
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));
}

void drop_untried(QDict *answer)
{
    QList *issues = qdict_get_qlist(answer, "issues");
    QList *rest = qlist_new();
    const QListEntry *entry;
    bool found = false;

    QLIST_FOREACH_ENTRY(issues, entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(issue, "code"), "channels-untried")) {
            g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "info");
            g_assert_false(found);
            found = true;
        } else {
            qlist_append_obj(rest, qobject_ref(QOBJECT(issue)));
        }
    }
    g_assert_true(found == (list_contains(answer, "capabilities", "multifd") ||
                            list_contains(answer, "capabilities",
                                          "postcopy-preempt")));
    qdict_put(answer, "issues", rest);
}

QDict *check_to_port(QTestState *from, const char *port, const char *options)
{
    g_autofree char *all =
        g_strdup_printf("{ 'check-only': true%s%s }", options ? ", " : "",
                        options ?: "");

    migrate_to_port(from, "handshake", port, all);
    for (int i = 0; i < PATIENCE; i++) {
        QDict *rsp = migrate_query(from);
        QDict *info = qobject_ref(qdict_get_qdict(rsp, "handshake"));

        g_assert_true(qdict_get_bool(info, "check-only"));
        g_assert_cmpstr(qdict_get_str(info, "role"), ==, "source");
        qobject_unref(rsp);
        if (strcmp(qdict_get_str(info, "status"), "in-progress")) {
            drop_untried(info);
            return info;
        }
        qobject_unref(info);
        g_usleep(1000);
    }
    g_assert_not_reached();
}

QDict *check_to(QTestState *from, QTestState *to, const char *options)
{
    g_autofree char *port = destination_port(to);

    return check_to_port(from, port, options);
}

QDict *check_profile(QTestState *to, QDict *profile, QDict *options)
{
    QDict *answer = qtest_qmp_assert_success_ref(to,
        "{ 'execute': 'check-migrate-profile',"
        "  'arguments': { 'profile': %p, 'options': %p } }", profile,
        options ?: qdict_new());

    drop_untried(answer);
    return answer;
}

QDict *query_profile(QTestState *from)
{
    return qtest_qmp_assert_success_ref(from,
        "{ 'execute': 'query-migrate-profile' }");
}

void assert_good_migration(QTestState *from, QTestState *to)
{
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    g_assert_true(is_running(to));
    g_assert_false(is_running(from));
}

/* The destination shows no trace of it all, and takes the next migration */
void assert_listening(QTestState *to)
{
    QDict *rsp = migrate_query(to);

    g_assert_cmpstr(qdict_get_str(rsp, "status"), ==, "setup");
    g_assert_false(qdict_haskey(rsp, "error-desc"));
    qobject_unref(rsp);
}

void stop_both(QTestState *from, QTestState *to)
{
    qtest_quit(from);
    qtest_quit(to);
}

const char *declined_reason(QDict *handshake, const char *capability)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(handshake, "declined"), entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(item, "capability"), capability)) {
            return qdict_get_str(item, "reason");
        }
    }
    return NULL;
}

int connect_to(const char *port)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(atoi(port)),
    };
    int fd = qemu_socket(AF_INET, SOCK_STREAM, 0);

    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==,
                    0);
    return fd;
}

/* Scripted peers */

void silent_peer_start(SilentPeer *peer)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(addr);

    peer->listener = qemu_socket(AF_INET, SOCK_STREAM, 0);
    g_assert_cmpint(bind(peer->listener, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(peer->listener, 4), ==, 0);
    g_assert_cmpint(getsockname(peer->listener, (struct sockaddr *)&addr,
                                &len), ==, 0);
    peer->port = g_strdup_printf("%d", ntohs(addr.sin_port));
}

/* Returns when HELLO has begun to come */
void silent_peer_accept(SilentPeer *peer)
{
    uint8_t header[64];

    peer->fd = qemu_accept(peer->listener, NULL, NULL);
    g_assert_cmpint(peer->fd, >=, 0);
    g_assert_cmpint(recv(peer->fd, header, sizeof(header), MSG_WAITALL), ==,
                    sizeof(header));
    g_assert_cmpint(ldl_be_p(header), ==, 0x514d4853);
}

void silent_peer_wait_others(SilentPeer *peer)
{
    struct timeval limit = { .tv_sec = PATIENCE / 1000 };
    fd_set set;

    FD_ZERO(&set);
    FD_SET(peer->listener, &set);
    g_assert_cmpint(select(peer->listener + 1, &set, NULL, NULL, &limit), ==,
                    1);
}

void silent_peer_stop(SilentPeer *peer)
{
    close(peer->fd);
    close(peer->listener);
    g_free(peer->port);
}

void put_named_header(GByteArray *buf, const uint8_t *session,
                             const char *name, uint32_t index)
{
    uint8_t header[64] = { 0 };

    stl_be_p(header, 0x514d4853);
    stw_be_p(header + 6, sizeof(header));
    memcpy(header + 8, session, 16);
    memcpy(header + 24, name, strlen(name));
    stl_be_p(header + 40, index);
    g_byte_array_append(buf, header, sizeof(header));
}

void put_header(GByteArray *buf, const char *name)
{
    static const uint8_t none[16];

    put_named_header(buf, none, name, 0);
}

void put_frame(GByteArray *buf, uint16_t type, const char *json)
{
    uint8_t prefix[8] = { 0 };

    stl_be_p(prefix, strlen(json));
    stw_be_p(prefix + 4, type);
    g_byte_array_append(buf, prefix, sizeof(prefix));
    g_byte_array_append(buf, (const uint8_t *)json, strlen(json));
}

void send_all(int fd, const void *buf, size_t len)
{
    g_assert_cmpint(send(fd, buf, len, MSG_NOSIGNAL), ==, len);
}

/* All that comes until the peer closes */
GByteArray *read_to_end(int fd)
{
    GByteArray *buf = g_byte_array_new();
    struct timeval limit = { .tv_sec = PATIENCE / 1000 };
    uint8_t chunk[4096];
    ssize_t len;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    while ((len = recv(fd, chunk, sizeof(chunk), 0)) > 0) {
        g_byte_array_append(buf, chunk, len);
    }
    /* 0 is the end; a reset will do for those who are not answered */
    g_assert_true(len == 0 || errno == ECONNRESET);
    return buf;
}

/* Members without meaning, see docs/interop/migration-handshake.rst */
static void drop_grease(QObject *obj)
{
    QDict *dict = qobject_to(QDict, obj);
    QList *list = qobject_to(QList, obj);
    const QListEntry *item;
    const QDictEntry *entry, *next;

    for (entry = dict ? qdict_first(dict) : NULL; entry; entry = next) {
        next = qdict_next(dict, entry);
        if (g_str_has_prefix(qdict_entry_key(entry), "grease-")) {
            qdict_del(dict, qdict_entry_key(entry));
        } else {
            drop_grease(qdict_entry_value(entry));
        }
    }
    if (list) {
        QLIST_FOREACH_ENTRY(list, item) {
            drop_grease(qlist_entry_obj(item));
        }
    }
}

static QDict *parse_message(const char *json)
{
    QObject *obj = qobject_from_json(json, &error_abort);

    drop_grease(obj);
    return qobject_to(QDict, obj);
}

/* The verdict's text, after header and frames of other types */
QDict *parse_answer(const GByteArray *buf, uint16_t *type)
{
    size_t pos = lduw_be_p(buf->data + 6);

    g_assert_cmpint(buf->len, >, 64);
    g_assert_cmpint(ldl_be_p(buf->data), ==, 0x514d4853);
    for (;;) {
        uint32_t length = ldl_be_p(buf->data + pos);

        g_assert_cmpint(pos + 8 + length, <=, buf->len);
        *type = lduw_be_p(buf->data + pos + 4);
        pos += 8;
        if (*type <= 5) {
            g_autofree char *json = g_strndup((char *)buf->data + pos, length);

            g_assert_cmpint(pos + length, ==, buf->len);
            return parse_message(json);
        }
        pos += length;
    }
}

/* The text of the first frame in @buf, which is of that type */
QDict *parse_frame(const GByteArray *buf, uint16_t type)
{
    g_autofree char *json = NULL;

    g_assert_cmpint(buf->len, >, 8);
    g_assert_cmpint(lduw_be_p(buf->data + 4), ==, type);
    g_assert_cmpint(8 + ldl_be_p(buf->data), ==, buf->len);
    json = g_strndup((char *)buf->data + 8, ldl_be_p(buf->data));
    return parse_message(json);
}

void source_say_hello(ScriptedSource *source, const char *port,
                      const char *hello)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    source->fd = connect_to(port);
    source->transcript = g_checksum_new(G_CHECKSUM_SHA256);
    put_header(buf, "main");
    put_frame(buf, FRAME_HELLO, hello);
    g_checksum_update(source->transcript, buf->data, buf->len);
    send_all(source->fd, buf->data, buf->len);
}

static void source_read(ScriptedSource *source, void *buf, size_t len)
{
    g_assert_cmpint(recv(source->fd, buf, len, MSG_WAITALL), ==, len);
    g_checksum_update(source->transcript, buf, len);
}

QDict *source_read_verdict(ScriptedSource *source, uint16_t *type)
{
    uint8_t header[64];

    source_read(source, header, sizeof(header));
    memcpy(source->session, header + 8, sizeof(source->session));
    for (;;) {
        g_autofree char *json = NULL;
        uint8_t prefix[8];
        uint32_t length;

        source_read(source, prefix, sizeof(prefix));
        length = ldl_be_p(prefix);
        *type = lduw_be_p(prefix + 4);
        json = g_malloc0(length + 1);
        source_read(source, json, length);
        if (*type <= 5) {
            return parse_message(json);
        }
    }
}

static void source_say_commit_and(ScriptedSource *source, const char *more)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json =
        g_strdup_printf("{ \"digest\": \"%s\"%s }",
                        g_checksum_get_string(source->transcript), more);

    put_frame(buf, FRAME_COMMIT, json);
    send_all(source->fd, buf->data, buf->len);
}

void source_say_commit(ScriptedSource *source)
{
    source_say_commit_and(source, "");
}

void source_say_commit_without(ScriptedSource *source, const char *capability,
                               const char *reason)
{
    g_autofree char *without =
        g_strdup_printf(", \"without\": [ { \"capability\": \"%s\","
                        " \"reason\": \"%s\" } ]", capability, reason);

    source_say_commit_and(source, without);
}

void source_close(ScriptedSource *source)
{
    close(source->fd);
    g_checksum_free(source->transcript);
}

void source_claim_session(ScriptedSource *source, const char *port,
                          const char *hello)
{
    uint16_t type;

    source_say_hello(source, port, hello);
    qobject_unref(source_read_verdict(source, &type));
    g_assert_cmpint(type, ==, FRAME_ACCEPT);
}

QDict *types_of(QTestState *who, const char *implements)
{
    QDict *rsp = qtest_qmp(who,
        "{ 'execute': 'qom-list-types', 'arguments': {"
        "  'implements': %s, 'abstract': false } }", implements);
    QDict *types = qdict_new();
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *type = qobject_to(QDict, qlist_entry_obj(entry));

        qdict_put_null(types, qdict_get_str(type, "name"));
    }
    qobject_unref(rsp);
    return types;
}

bool add_twin(QTestState *who, const char *type, int n, bool on_port)
{
    g_autofree char *id = g_strdup_printf("twin%d", n);
    g_autofree char *bus = g_strdup_printf("port%d", n);
    QDict *args = qdict_new();
    QDict *rsp;
    bool added;

    qdict_put_str(args, "driver", type);
    qdict_put_str(args, "id", id);
    if (on_port) {
        qdict_put_str(args, "bus", bus);
    }
    rsp = qtest_qmp(who, "{ 'execute': 'device_add', 'arguments': %p }", args);
    added = qdict_haskey(rsp, "return");
    qobject_unref(rsp);
    return added;
}

void assert_twins(QTestState *from, QTestState *to)
{
    QDict *info = check_to(from, to, NULL);
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "issues"), entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (strcmp(qdict_get_str(issue, "code"), "unmigratable")) {
            g_test_message("%s", qdict_get_str(issue, "message"));
            g_assert_not_reached();
        }
    }
    qobject_unref(info);
}
