/*
 * QTest testcases for the migration handshake: what devices have promised
 *
 * Two QEMUs that differ in one thing, of which the stream says nothing, or too
 * late.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "hw/pci/pci_regs.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

static char *tmpfs;

/* What the guest does on the source before it is to move */
typedef void GuestFunc(QTestState *from);

typedef struct PromiseTest {
    const char *name;
    const char *code;
    bool warning;
    const char *subject;        /* patterns with * and ? */
    const char *source;
    const char *destination;
    const char *message;
    const char *from;
    const char *to;
    GuestFunc *guest;
    const char *device;         /* which the binary needs to have */
} PromiseTest;

#define PC          "-machine pc "
#define NULL_DISK(more) \
    "-drive if=none,id=disk,driver=null-co,read-zeroes=on," more " "
#define VIRTIO_BLK  NULL_DISK("size=64M") \
    "-device virtio-blk-pci,drive=disk,addr=4,vectors=3,disable-modern=on,"

/* Where BAR 0 of the device in slot 4 goes */
#define BAR0        0xc000
#define RING        0x10000

/* A driver of the legacy kind finds the device in slot 4, and resets it */
static void virtio_start(QTestState *from)
{
    qtest_outl(from, 0xcf8, 0x80002010);
    qtest_outl(from, 0xcfc, BAR0);
    qtest_outl(from, 0xcf8, 0x80002004);
    qtest_outw(from, 0xcfc, 0x5);           /* I/O ports and bus master */
    qtest_outb(from, BAR0 + 18, 0);
    qtest_outb(from, BAR0 + 18, 3);
}

static void virtio_ack_all(QTestState *from)
{
    virtio_start(from);
    /* But for the one that only drivers acknowledge which should not */
    qtest_outl(from, BAR0 + 4, qtest_inl(from, BAR0) & ~(1U << 30));
    qtest_outb(from, BAR0 + 18, 7);
}

/* The second queue, with one request to flush the disk */
static void virtio_use_second_queue(QTestState *from)
{
    const uint64_t desc = RING, data = RING + 0x80000;
    uint64_t avail;

    virtio_start(from);
    qtest_outl(from, BAR0 + 4, 0);
    qtest_outb(from, BAR0 + 18, 7);
    qtest_outw(from, BAR0 + 14, 1);
    avail = desc + 16 * qtest_inw(from, BAR0 + 12);
    qtest_outl(from, BAR0 + 8, RING >> 12);
    qtest_writel(from, data, 4);            /* VIRTIO_BLK_T_FLUSH */
    qtest_writeq(from, desc, data);
    qtest_writel(from, desc + 8, 16);
    qtest_writew(from, desc + 12, 1);       /* there is a next one: */
    qtest_writew(from, desc + 14, 1);
    qtest_writeq(from, desc + 16, data + 16);
    qtest_writel(from, desc + 24, 1);
    qtest_writew(from, desc + 28, 2);       /* the device writes it */
    qtest_writew(from, avail + 4, 0);
    qtest_writew(from, avail + 2, 1);
    qtest_writeb(from, data + 16, 0xff);
    qtest_outw(from, BAR0 + 16, 1);
    while (qtest_readb(from, data + 16) == 0xff) {
        g_usleep(1000);
    }
}

/* As Linux does it */
static void use_modern_cpu_hotplug(QTestState *from)
{
    qtest_outb(from, 0xcd8, 0);
}

#define NUMA(first, second) \
    "-object memory-backend-ram,id=m0,size=32M " \
    "-object memory-backend-ram,id=m1,size=32M " \
    "-numa node,memdev=" first " -numa node,memdev=" second

#define VIRTIO_MEM(more) \
    "-m 64,maxmem=1G -object memory-backend-ram,id=vm,size=64M " \
    "-device virtio-mem-pci,addr=4,memdev=vm," more

#define IDE(device) PC NULL_DISK("size=64M") "-device " device

#define SCSI(device) \
    NULL_DISK("size=64M") "-device virtio-scsi-pci,addr=4 -device " device

static const PromiseTest tests[] = {
    {
        .name = "counts", .code = "section-schema",
        .subject = "0000:00:04.0/xhci", .source = "8", .destination = "16",
        .message = "*has 8 'xhci.ports' on the source and 16 on *",
        .from = "-device qemu-xhci,addr=4",
        .to = "-device qemu-xhci,addr=4,p2=8,p3=8", .device = "qemu-xhci",
    }, {
        .name = "values", .code = "section-schema",
        .subject = "0000:00:04.0/pcie-root-port", .source = "8",
        .destination = "4", .message = "*'*.aer_log.log_max' is 8 on *",
        .from = "-device pcie-root-port,addr=4",
        .to = "-device pcie-root-port,addr=4,aer_log_max=4",
        .device = "pcie-root-port",
    }, {
        .name = "bytes", .code = "section-schema", .warning = true,
        .subject = "0000:00:01.3/piix4_pm", .source = "*", .destination = "*",
        .message = "the state of * bytes on the source and * on *",
        .from = PC, .to = PC
        "-global PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off",
    }, {
        .name = "device-type", .code = "device", .warning = true,
        .subject = "0000:00:04.0/1/usb-ptr", .source = "usb-mouse",
        .destination = "usb-tablet",
        .message = "* is a usb-mouse on the source and a usb-tablet on *",
        .from = "-device qemu-xhci,addr=4 -device usb-mouse,port=1",
        .to = "-device qemu-xhci,addr=4 -device usb-tablet,port=1",
        .device = "qemu-xhci",
    }, {
        .name = "pci-config", .code = "device",
        .subject = "0000:00:04.0/virtio-rng", .source = "01",
        .destination = "03",
        .message = "*PCI configuration differs at 0x9a (MSI-X capability): 01 "
                   "on the source, 03 on the destination",
        .from = "-device virtio-rng-pci,addr=4,vectors=2",
        .to = "-device virtio-rng-pci,addr=4,vectors=4",
        .device = "virtio-rng-pci",
    }, {
        .name = "pci-subsystem", .code = "device", .warning = true,
        .subject = "0000:00:04.0/e1000e", .source = "86",
        .destination = "f4", .message = "*differs at 0x2c (subsystem): 86 on *",
        .from = "-device e1000e,addr=4",
        .to = "-device e1000e,addr=4,subsys_ven=0x1af4", .device = "e1000e",
    }, {
        .name = "subsys", .code = "section-schema",
        .subject = "0000:00:04.0/e1000e", .source = "32902",
        .destination = "6900", .message = "*'subsys_ven' is 32902 on *",
        .from = "-device e1000e,addr=4",
        .to = "-device e1000e,addr=4,subsys_ven=0x1af4", .device = "e1000e",
    }, {
        .name = "virtio-features", .code = "device",
        .subject = "0000:00:04.0/virtio-blk",
        .source = "VIRTIO_BLK_F_DISCARD", .destination = "missing",
        .message = "*the guest uses VIRTIO_BLK_F_DISCARD, which the "
                   "destination does not offer",
        .from = VIRTIO_BLK "num-queues=1",
        .to = VIRTIO_BLK "num-queues=1,discard=off",
        .guest = virtio_ack_all, .device = "virtio-blk-pci",
    }, {
        .name = "virtio-queues", .code = "device",
        .subject = "0000:00:04.0/virtio-blk", .source = "2",
        .destination = "1",
        .message = "*the guest uses 2 queues, and the destination has 1",
        .from = VIRTIO_BLK "num-queues=2", .to = VIRTIO_BLK "num-queues=1",
        .guest = virtio_use_second_queue, .device = "virtio-blk-pci",
    }, {
        .name = "ports", .code = "device",
        .subject = "0000:00:04.0/virtio-console", .source = "1",
        .destination = "none",
        .message = "*has port 1 on the source and none on *",
        .from = "-device virtio-serial-pci,addr=4 "
                "-device virtserialport,nr=1",
        .to = "-device virtio-serial-pci,addr=4", .device = "virtserialport",
    }, {
        .name = "outputs", .code = "section-schema",
        .subject = "0000:00:04.0/virtio-gpu", .source = "1",
        .destination = "2", .message = "*max_outputs' is 1 on *",
        .from = "-device virtio-gpu-pci,addr=4",
        .to = "-device virtio-gpu-pci,addr=4,max_outputs=2",
        .device = "virtio-gpu-pci",
    }, {
        .name = "block-size", .code = "section-schema",
        .subject = "0000:00:04.0/virtio-mem", .source = "2097152",
        .destination = "4194304", .message = "*block_size' is 2097152 on *",
        .from = VIRTIO_MEM("block-size=2M"), .to = VIRTIO_MEM("block-size=4M"),
        .device = "virtio-mem-pci",
    }, {
        .name = "possible-cpus", .code = "section-schema",
        .subject = "0000:00:1f.0/ICH9LPC", .source = "1", .destination = "2",
        .message = "*possible_cpus' is 1 on the source and 2 on *",
        .from = "-smp 1", .to = "-smp 2", .guest = use_modern_cpu_hotplug,
    }, {
        .name = "timers", .code = "section-schema", .subject = "hpet",
        .source = "3", .destination = "4",
        .message = "the state of 'hpet' has 3 'timer' on the source and 4 *",
        .from = "-machine q35,hpet=on",
        .to = "-machine q35,hpet=on -global hpet.timers=4",
    }, {
        /* It is no loss as long as the guest is not under way */
        .name = "no-pic", .code = "section-extra", .warning = true,
        .subject = "i8259", .source = "missing", .destination = "present",
        .message = "only the destination has 'i8259', *",
        .from = "-machine q35,pic=off", .to = "-machine q35,pic=on",
    }, {
        .name = "cpu-features", .code = "cpu", .subject = "cpu_common",
        .source = "avx2", .destination = "missing",
        .message = "the guest's CPU has avx2, which *",
        .from = "-cpu max", .to = "-cpu max,-avx2",
    }, {
        .name = "cpu-model", .code = "cpu", .warning = true,
        .subject = "cpu_common", .source = "qemu64-*",
        .destination = "max-*", .message = "*CPU is a qemu64-* and a max-*",
        .from = "-cpu qemu64", .to = "-cpu max",
    }, {
        .name = "cpu", .code = "cpu", .warning = true,
        .subject = "cpu_common", .source = "this", .destination = "that",
        .message = "the model-id of the guest's CPU is this on *",
        .from = "-cpu max,model-id=this", .to = "-cpu max,model-id=that",
    }, {
        .name = "ide-missing", .code = "disk",
        .subject = "0000:00:01.1/ide", .source = "hd",
        .destination = "missing",
        .message = "disk 1.0 of * is a hd on the source and missing on *",
        .from = IDE("ide-hd,drive=disk,bus=ide.1,unit=0"), .to = PC,
    }, {
        .name = "ide-moved", .code = "disk",
        .subject = "0000:00:01.1/ide", .source = "hd",
        .destination = "missing",
        .message = "disk 1.0 of * is a hd on the source and missing on *",
        .from = IDE("ide-hd,drive=disk,bus=ide.1,unit=0"),
        .to = IDE("ide-hd,drive=disk,bus=ide.1,unit=1"),
    }, {
        .name = "ide-cd", .code = "disk",
        .subject = "0000:00:01.1/ide", .source = "1.0",
        .destination = "missing",
        .message = "disk 1.0 of * can be written on *",
        .from = IDE("ide-hd,drive=disk,bus=ide.1,unit=0"),
        .to = IDE("ide-cd,drive=disk,bus=ide.1,unit=0"),
    }, {
        .name = "disk-type", .code = "disk", .warning = true,
        .subject = "*0:0:0/scsi-disk", .source = "cd", .destination = "hd",
        .message = "disk 0 of * is a cd on the source and hd on *",
        .from = SCSI("scsi-cd,drive=disk"), .to = SCSI("scsi-hd,drive=disk"),
        .device = "scsi-cd",
    }, {
        .name = "disk-size", .code = "disk", .warning = true,
        .subject = "0000:00:04.0/virtio-blk", .source = "67108864",
        .destination = "33554432", .message = "disk 0 of * has 67108864 *",
        .from = NULL_DISK("size=64M")
                "-device virtio-blk-pci,drive=disk,addr=4",
        .to = NULL_DISK("size=32M") "-device virtio-blk-pci,drive=disk,addr=4",
        .device = "virtio-blk-pci",
    }, {
        .name = "disk-writable", .code = "disk",
        .subject = "0000:00:04.0/virtio-blk", .source = "0",
        .destination = "missing", .message = "disk 0 of * can be written on *",
        .from = NULL_DISK("size=64M")
                "-device virtio-blk-pci,drive=disk,addr=4",
        .to = NULL_DISK("size=64M,read-only=on")
              "-device virtio-blk-pci,drive=disk,addr=4",
        .device = "virtio-blk-pci",
    }, {
        .name = "disk-serial", .code = "disk", .warning = true,
        .subject = "0000:00:04.0/virtio-blk", .source = "one",
        .destination = "two", .message = "disk 0 of * serial number one on *",
        .from = VIRTIO_BLK "serial=one", .to = VIRTIO_BLK "serial=two",
        .device = "virtio-blk-pci",
    }, {
        .name = "disk-block-size", .code = "disk", .warning = true,
        .subject = "0000:00:04.0/virtio-blk", .source = "512",
        .destination = "4096",
        .message = "disk 0 of * blocks of 512 bytes on *",
        .from = VIRTIO_BLK "logical_block_size=512",
        .to = VIRTIO_BLK "logical_block_size=4096,physical_block_size=4096",
        .device = "virtio-blk-pci",
    }, {
        .name = "address", .code = "ram-block-address", .subject = "m0",
        .source = "0x0", .destination = "0x2000000",
        .message = "memory 'm0' is at 0x0 on the source and at 0x2000000 on *",
        .from = NUMA("m0", "m1"), .to = NUMA("m1", "m0"),
    },
};

static bool matches(const QDict *issue, const char *member, const char *pattern)
{
    return g_pattern_match_simple(pattern,
                                  qdict_get_try_str(issue, member) ?: "");
}

static bool has_issue(QDict *info, const PromiseTest *t)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "issues"), entry) {
        const QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (matches(issue, "code", t->code) &&
            matches(issue, "severity", t->warning ? "warning" : "error") &&
            matches(issue, "subject", t->subject) &&
            matches(issue, "source", t->source) &&
            matches(issue, "destination", t->destination) &&
            matches(issue, "message", t->message)) {
            return true;
        }
    }
    g_test_message("%s", qobject_to_json_pretty(QOBJECT(info), true)->str);
    return false;
}

static void assert_issue(QDict *info, const PromiseTest *t)
{
    g_assert_true(has_issue(info, t));
    qobject_unref(info);
}

static void assert_nothing_moved(QTestState *from)
{
    QDict *rsp = wait_status(from, "failed");
    QDict *ram = qdict_get_qdict(rsp, "ram");

    g_assert_true(!ram || qdict_get_int(ram, "transferred") == 0);
    qobject_unref(rsp);
    g_assert_true(is_running(from));
}

static void test_promise(const void *opaque)
{
    const PromiseTest *t = opaque;
    QTestState *to = start_destination(t->to);
    QTestState *from = start_source(t->from);
    const char *status = "rejected";

    if (t->guest) {
        t->guest(from);
    }
    assert_issue(check_to(from, to, NULL), t);
    assert_issue(check_profile(to, query_profile(from), NULL), t);
    migrate_to(from, to, t->warning ? "{ 'warnings-as-errors': true }" : NULL);
    assert_nothing_moved(from);
    assert_issue(wait_handshake(from, status), t);
    assert_issue(wait_handshake(to, status), t);
    assert_listening(to);
    stop_both(from, to);
}

/* It is not for the difference that is being looked for */
static void test_same(const void *opaque)
{
    const PromiseTest *t = opaque;
    QTestState *to = start_destination(t->from);
    QTestState *from = start_source(t->from);
    QDict *info;

    if (t->guest) {
        t->guest(from);
    }
    info = check_to(from, to, NULL);
    if (!qlist_empty(qdict_get_qlist(info, "issues"))) {
        g_test_message("%s", qobject_to_json_pretty(QOBJECT(info), true)->str);
        g_assert_not_reached();
    }
    qobject_unref(info);
    migrate_to(from, to, "{ 'warnings-as-errors': true }");
    wait_completed(from, to);
    stop_both(from, to);
}

/* Ends @who */
static char *saved_stream(QTestState *who, gsize *len)
{
    g_autofree char *path = g_strdup_printf("%s/stream", tmpfs);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    char *stream;

    qtest_qmp_assert_success(who, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    qobject_unref(wait_status(who, "completed"));
    qtest_quit(who);
    g_assert_true(g_file_get_contents(path, &stream, len, NULL));
    unlink(path);
    return stream;
}

/* After RAM, of which it depends on time how much is in one piece */
static gsize device_state(const char *stream, gsize len)
{
    static const char first[] = "\005timer";

    for (gsize i = 0; i + sizeof(first) < len; i++) {
        if (!memcmp(stream + i, first, strlen(first))) {
            return i;
        }
    }
    g_assert_not_reached();
}

/* Takes @a and @b, which are streams */
static void assert_same_state(char *a, gsize len_a, char *b, gsize len_b)
{
    gsize at_a = device_state(a, len_a);
    gsize at_b = device_state(b, len_b);

    g_assert_cmpuint(len_a - at_a, ==, len_b - at_b);
    for (gsize i = 0; i < len_a - at_a; i++) {
        if (a[at_a + i] != b[at_b + i]) {
            g_test_message("the streams differ at %zu", i);
            g_assert_not_reached();
        }
    }
    g_free(a);
    g_free(b);
}

#define STREAM_OPTIONS \
    "-S -rtc base=2020-01-01,clock=vm -smp 2 " \
    "-device qemu-xhci -device pcie-root-port -device e1000e " \
    "-device virtio-gpu-pci -device virtio-rng-pci " \
    NULL_DISK("size=64M") "-device ide-hd,drive=disk "

/* Who is asked what it promises does not change by that */
static void test_stream(void)
{
    char *streams[2];
    gsize len[2];

    for (int ask = 0; ask < 2; ask++) {
        QTestState *from = start_source(STREAM_OPTIONS);

        for (int i = 0; ask && i < 3; i++) {
            qobject_unref(query_profile(from));
        }
        streams[ask] = saved_stream(from, &len[ask]);
    }
    assert_same_state(streams[0], len[0], streams[1], len[1]);
}

/* Nor does who has not loaded anything yet, and is asked what it could keep */
static void test_stream_of_destination(void)
{
    g_autofree char *path = g_strdup_printf("%s/first", tmpfs);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    QTestState *from = start_source(STREAM_OPTIONS);
    QDict *profile = query_profile(from);
    g_autofree char *first = NULL;
    char *streams[2];
    gsize len[2];

    first = saved_stream(from, &len[0]);
    g_assert_true(g_file_set_contents(path, first, len[0], NULL));
    for (int ask = 0; ask < 2; ask++) {
        QTestState *to = start_machine("-incoming defer %s", STREAM_OPTIONS);

        for (int i = 0; ask && i < 3; i++) {
            qobject_unref(check_profile(to, qobject_ref(profile), NULL));
        }
        qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                                 "  'arguments': { 'uri': %s } }", uri);
        qobject_unref(wait_status(to, "completed"));
        streams[ask] = saved_stream(to, &len[ask]);
    }
    assert_same_state(streams[0], len[0], streams[1], len[1]);
    qobject_unref(profile);
    unlink(path);
}

#define ROOT_PORT \
    "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off " \
    "-device ioh3420,id=rp,addr=4,chassis=1 "

/* A root port in slot 4 has an interrupt for a guest that has masked it */
static void mask_hotplug_interrupt(QTestState *from)
{
    qtest_outl(from, 0xcf8, 0x80002060);
    qtest_outw(from, 0xcfe, 1);             /* MSI is on, */
    qtest_outl(from, 0xcf8, 0x8000206c);
    qtest_outl(from, 0xcfc, 3);             /* and all vectors are masked */
    qtest_outl(from, 0xcf8, 0x800020a8);
    qtest_outw(from, 0xcfc, qtest_inw(from, 0xcfc) | PCI_EXP_SLTCTL_HPIE |
                            PCI_EXP_SLTCTL_PDCE);
    qtest_qmp_assert_success(from, "{ 'execute': 'device_add', 'arguments': {"
                             "  'driver': 'virtio-rng-pci', 'id': 'hot',"
                             "  'bus': 'rp' } }");
}

/* It may be there now, and gone when the state is loaded */
static void test_pending_interrupt(void)
{
    static const PromiseTest test = {
        .code = "device", .warning = true,
        .subject = "0000:00:04.0/ioh-3240-express-root-port",
        .source = "*", .destination = "00",
        .message = "*PCI status differs at 0x70 (MSI capability): *",
        .from = ROOT_PORT,
        .to = ROOT_PORT "-device virtio-rng-pci,id=hot,bus=rp",
    };
    QTestState *to, *from;
    QDict *info;

    if (!qtest_has_device("ioh3420")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination(test.to);
    from = start_source(test.from);
    mask_hotplug_interrupt(from);
    info = check_to(from, to, NULL);
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "accepted");
    g_assert_cmpuint(qlist_size(qdict_get_qlist(info, "issues")), ==, 1);
    assert_issue(info, &test);
    stop_both(from, to);
}

/* Devices that may be added twice, in a QEMU that waits and in one that runs */
#define TWINS_MAX   20

static char *twins_options(bool ports)
{
    GString *opts = g_string_new(ports ? "" : PC);

    g_string_append(opts, "-m 64,maxmem=1G,slots=2 -device qemu-xhci,id=xhci "
                    "-device virtio-scsi-pci -device virtio-serial-pci ");
    for (int i = 0; i < TWINS_MAX && ports; i++) {
        g_string_append_printf(opts, "-device pcie-root-port,id=port%d,"
                               "addr=%d.%d,multifunction=on,chassis=%d ", i,
                               8 + i / 8, i % 8, i);
    }
    return g_string_free(opts, FALSE);
}

/* Each device that there is, against its like: there is nothing to be said */
static void test_twins(bool ports)
{
    g_autofree char *opts = twins_options(ports);
    QTestState *to = start_destination(opts);
    QTestState *from = start_source(opts);
    QDict *types = types_of(from, "device");
    QDict *pci = types_of(from, "pci-device");
    const QDictEntry *entry;
    int added = 0, all = 0;

    for (entry = qdict_first(types); entry; entry = qdict_next(types, entry)) {
        const char *type = qdict_entry_key(entry);
        bool on_port = ports && qdict_haskey(pci, type);
        bool there = add_twin(from, type, added, on_port);

        /* What fails may leave something behind, too */
        g_assert_true(add_twin(to, type, added, on_port) == there);
        all += there;
        added += there;
        if (added == TWINS_MAX) {
            assert_twins(from, to);
            stop_both(from, to);
            to = start_destination(opts);
            from = start_source(opts);
            added = 0;
        }
    }
    assert_twins(from, to);
    stop_both(from, to);
    g_test_message("%d devices", all);
    g_assert_cmpint(all, >, 20);
    qobject_unref(types);
    qobject_unref(pci);
}

static void test_twins_pc(void)
{
    test_twins(false);
}

static void test_twins_q35(void)
{
    test_twins(true);
}

/* What a guest gets on its way there, and loses on its way back */
static const struct {
    const char *subject;
    const char *gain;           /* a pattern */
    const char *less;
    const char *more;
} returns[] = {
    { "cpu_common", "*, * and * more", "-cpu qemu64", "-cpu max" },
    { "0000:00:04.0/virtio-blk", "0",
      NULL_DISK("size=64M,read-only=on")
      "-device virtio-blk-pci,drive=disk,addr=4",
      NULL_DISK("size=64M") "-device virtio-blk-pci,drive=disk,addr=4" },
};

static void assert_check(const char *from_opts, const char *to_opts,
                         const char *status, int i)
{
    QTestState *to = start_destination(to_opts);
    QTestState *from = start_source(from_opts);
    QDict *info = check_to(from, to, NULL);
    QDict *issue = find_issue(info, "no-return");

    g_assert_cmpstr(qdict_get_str(info, "status"), ==, status);
    if (i < 0) {
        g_assert_null(issue);
    } else {
        g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "info");
        g_assert_cmpstr(qdict_get_str(issue, "subject"), ==,
                        returns[i].subject);
        g_assert_cmpstr(qdict_get_str(issue, "source"), ==, "missing");
        g_assert_true(matches(issue, "destination", returns[i].gain));
    }
    qobject_unref(info);
    stop_both(from, to);
}

static void test_return(void)
{
    for (int i = 0; i < ARRAY_SIZE(returns); i++) {
        const char *less = returns[i].less;
        const char *more = returns[i].more;

        assert_check(less, more, "accepted", i);
        assert_check(less, less, "accepted", -1);
        assert_check(more, more, "accepted", -1);
        /* So it is */
        assert_check(more, less, "rejected", -1);
    }
}

static void add_tests(const char *kind, void (*func)(const void *))
{
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strdup_printf("/migration/handshake/promises/%s%s",
                            tests[i].name, kind);

        if (!tests[i].device || qtest_has_device(tests[i].device)) {
            qtest_add_data_func(path, &tests[i], func);
        }
    }
}

void migration_test_add_handshake_promises(MigrationTestEnv *env)
{
    if (!env->is_x86) {
        return;
    }
    tmpfs = env->tmpfs;
    add_tests("", test_promise);
    add_tests("/same", test_same);
    handshake_test_add("/migration/handshake/promises/return", test_return);
    handshake_test_add("/migration/handshake/promises/stream", test_stream);
    handshake_test_add("/migration/handshake/promises/stream-of-destination",
                       test_stream_of_destination);
    handshake_test_add("/migration/handshake/promises/pending-interrupt",
                       test_pending_interrupt);
    handshake_test_add("/migration/handshake/promises/twins/pc", test_twins_pc);
    handshake_test_add("/migration/handshake/promises/twins/q35",
                       test_twins_q35);
}
