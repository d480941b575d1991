/*
 * Migration handshake: what devices promise, and how it is written
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-input-visitor.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "migration/handshake/promises.h"

typedef struct Part {
    uint8_t level;
    uint8_t fixed;
} Part;

typedef struct Thing {
    uint32_t before;
    uint32_t n_loaded;          /* comes in the stream, before its array */
    uint32_t n_local;           /* does not */
    int32_t size_local;
    uint16_t *numbers;
    uint8_t *buffer;
    uint64_t wanted;
    Part parts[3];
    Part *pointed;
    Part *pointers[2];
    bool has_more;
    uint64_t more;
    unsigned hooked;
} Thing;

/* As VMSTATE_UINT8_EQUAL(), which differs from QEMU to QEMU */
#define EQUAL(field, state, bits) \
    VMSTATE_SINGLE(field, state, 0, vmstate_info_uint ## bits ## _equal, \
                   uint ## bits ## _t)

static bool has_more(void *opaque)
{
    return ((Thing *)opaque)->has_more;
}

static bool always(void *opaque, int version)
{
    return true;
}

static bool perhaps(void *opaque, int version)
{
    return has_more(opaque);
}

static int pre_load(void *opaque)
{
    g_assert_not_reached();
}

static void part_promises(VMStatePromises *p, void *opaque)
{
    migration_promise_value(p, "level", ((Part *)opaque)->level);
}

static const VMStateDescription vmstate_part = {
    .name = "part", .version_id = 3, .promises = part_promises,
    .fields = (const VMStateField[]) {
        EQUAL(fixed, Part, 8),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_more = {
    .name = "thing/more", .version_id = 1, .needed = has_more,
    .fields = (const VMStateField[]) {
        EQUAL(more, Thing, 64),
        VMSTATE_VARRAY_UINT32(numbers, Thing, n_local, 0, vmstate_info_uint16,
                              uint16_t),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_thing = {
    .name = "thing", .version_id = 2,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(before, Thing),
        VMSTATE_UINT32(n_loaded, Thing),
        VMSTATE_VARRAY_UINT32(numbers, Thing, n_loaded, 0, vmstate_info_uint16,
                              uint16_t),
        VMSTATE_VARRAY_UINT32(numbers, Thing, n_local, 0, vmstate_info_uint16,
                              uint16_t),
        VMSTATE_VBUFFER(buffer, Thing, 0, NULL, size_local),
        EQUAL(wanted, Thing, 64),
        VMSTATE_STRUCT_ARRAY(parts, Thing, 3, 0, vmstate_part, Part),
        VMSTATE_STRUCT_POINTER(pointed, Thing, vmstate_part, Part),
        VMSTATE_ARRAY_OF_POINTER_TO_STRUCT(pointers, Thing, 2, 0, vmstate_part,
                                           Part),
        VMSTATE_UINT32_V(n_local, Thing, 3),        /* of a later version */
        VMSTATE_VALIDATE("is as it should be", always),
        VMSTATE_END_OF_LIST()
    },
    .subsections = (const VMStateDescription *const []) {
        &vmstate_more, NULL
    },
};

static const VMStateDescription vmstate_prepared = {
    .name = "thing", .version_id = 2, .pre_load = pre_load,
    .fields = (const VMStateField[]) {
        VMSTATE_VARRAY_UINT32(numbers, Thing, n_local, 0, vmstate_info_uint16,
                              uint16_t),
        EQUAL(wanted, Thing, 64),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_allocated = {
    .name = "thing", .version_id = 2,
    .fields = (const VMStateField[]) {
        VMSTATE_VBUFFER_ALLOC_UINT32(buffer, Thing, 0, NULL, n_local),
        VMSTATE_END_OF_LIST()
    },
};

typedef struct Temporary {
    Thing *parent;
    uint64_t much[100];
} Temporary;

/* What is made for a time says nothing of what is there */
static const VMStateDescription vmstate_temporary = {
    .name = "temporary", .pre_save = pre_load,
    .fields = (const VMStateField[]) {
        EQUAL(much[0], Temporary, 64),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_with_temporary = {
    .name = "thing", .version_id = 2,
    .fields = (const VMStateField[]) {
        VMSTATE_WITH_TMP(Thing, Temporary, vmstate_temporary),
        VMSTATE_VARRAY_UINT32(numbers, Thing, n_local, 0, vmstate_info_uint16,
                              uint16_t),
        VMSTATE_END_OF_LIST()
    },
};

/* What a later QEMU has without a test, when the machines with less are gone */
static const VMStateDescription vmstate_old_and_new[] = {
    {
        .name = "thing", .version_id = 2,
        .fields = (const VMStateField[]) {
            VMSTATE_UINT32_TEST(before, Thing, always),
            VMSTATE_STRUCT_TEST(parts[0], Thing, always, 1, vmstate_part, Part),
            VMSTATE_UINT32_TEST(n_loaded, Thing, perhaps),
            VMSTATE_END_OF_LIST()
        },
    }, {
        .name = "thing", .version_id = 2,
        .fields = (const VMStateField[]) {
            VMSTATE_UINT32(before, Thing),
            VMSTATE_STRUCT(parts[0], Thing, 1, vmstate_part, Part),
            VMSTATE_UINT32_TEST(n_loaded, Thing, perhaps),
            VMSTATE_END_OF_LIST()
        },
    },
};

static uint16_t numbers[8];

static Thing thing_new(Part *part)
{
    return (Thing) {
        .numbers = numbers, .n_loaded = 2, .n_local = 4, .size_local = 6,
        .wanted = UINT64_MAX,
        .parts = { { 1, 2 }, { 3, 4 }, { 5, 6 } }, .pointers = { NULL, part },
        .more = 7,
    };
}

/* As they go out, in the order of the schema */
static char *promised_text(const VMStateDescription *vmsd, Thing *thing,
                           const char *type)
{
    Thing before = *thing;
    g_autoptr(QDict) dict = handshake_promises_collect(vmsd, thing,
                                                       vmsd->version_id, type);
    g_autoptr(GString) json = NULL;
    MigrationPromises *promises;
    Visitor *v;

    g_assert_cmpmem(&before, sizeof(before), thing, sizeof(*thing));
    if (!dict) {
        return g_strdup("");
    }
    /* All that there is has a member of its own */
    v = qobject_input_visitor_new(QOBJECT(dict));
    visit_type_MigrationPromises(v, NULL, &promises, &error_abort);
    visit_free(v);
    qapi_free_MigrationPromises(promises);
    json = qobject_to_json(QOBJECT(dict));
    return g_strdup(json->str);
}

static void assert_promised(const VMStateDescription *vmsd, Thing *thing,
                            const char *expected)
{
    g_autofree char *text = promised_text(vmsd, thing, NULL);
    QObject *a = qobject_from_json(text, &error_abort);
    QObject *b = qobject_from_json(expected, &error_abort);

    if (!qobject_is_equal(a, b)) {
        g_assert_cmpstr(text, ==, expected);
    }
    qobject_unref(a);
    qobject_unref(b);
}

static void test_source(void)
{
    Part part = { 8, 9 };
    Thing thing = thing_new(&part);

    assert_promised(&vmstate_thing, &thing,
        "{ \"counts\": [ { \"name\": \"numbers\", \"value\": 4 },"
        "               { \"name\": \"buffer\", \"value\": 6 } ],"
        "  \"values\": ["
        "    { \"name\": \"wanted\", \"value\": 18446744073709551615 },"
        "    { \"name\": \"parts.level\", \"value\": 1 },"
        "    { \"name\": \"parts.fixed\", \"value\": 2 },"
        "    { \"name\": \"parts[1].level\", \"value\": 3 },"
        "    { \"name\": \"parts[1].fixed\", \"value\": 4 },"
        "    { \"name\": \"parts[2].level\", \"value\": 5 },"
        "    { \"name\": \"parts[2].fixed\", \"value\": 6 },"
        "    { \"name\": \"pointers[1].level\", \"value\": 8 },"
        "    { \"name\": \"pointers[1].fixed\", \"value\": 9 } ],"
        "  \"bytes\": 27 }");
    thing.has_more = true;
    thing.n_local = 0;
    assert_promised(&vmstate_more, &thing,
        "{ \"counts\": [ { \"name\": \"numbers\", \"value\": 0 } ],"
        "  \"values\": [ { \"name\": \"more\", \"value\": 7 } ],"
        "  \"bytes\": 8 }");
}

static void test_subsections(void)
{
    Part part = { 8, 9 };
    Thing thing = thing_new(&part);
    g_autofree char *text = NULL;

    thing.has_more = true;
    text = promised_text(&vmstate_thing, &thing, NULL);
    g_assert_nonnull(strstr(text, "\"subsections\": [\"thing/more\"]"));
    g_assert_nonnull(strstr(text, "{\"name\": \"thing/more:more\", "
                                  "\"value\": 7}"));
}

static HandshakeLimit *limit_of(const GPtrArray *limits, const char *name,
                                const char *item)
{
    for (guint i = 0; i < limits->len; i++) {
        HandshakeLimit *limit = g_ptr_array_index(limits, i);

        if (!strcmp(limit->name, name) && !g_strcmp0(limit->item, item)) {
            return limit;
        }
    }
    return NULL;
}

static void test_destination(void)
{
    Thing thing = thing_new(NULL);
    g_autoptr(GPtrArray) limits =
        handshake_limits_collect(&vmstate_thing, &thing, 2, "thing-type");
    HandshakeLimit *limit;

    limit = limit_of(limits, "counts", "numbers");
    g_assert_cmpuint(limit->number, ==, 4);
    g_assert_cmpint(limit->rule, ==, HANDSHAKE_RULE_EQUAL);
    g_assert_cmpint(limit->breach, ==, MIGRATION_BREACH_LOAD);
    g_assert_cmpuint(limit_of(limits, "values", "parts[2].fixed")->number, ==,
                     6);
    g_assert_cmpstr(limit_of(limits, "device-type", NULL)->text, ==,
                    "thing-type");
    /* It knows the subsection, but not yet whether that will be there */
    limit = limit_of(limits, "subsections", NULL);
    g_assert_true(g_hash_table_contains(limit->set, "thing/more"));
    g_assert_null(limit_of(limits, "values", "thing/more:more"));
    g_assert_null(limit_of(limits, "counts", "thing/more:numbers"));
}

static void returning_promises(VMStatePromises *p, void *opaque)
{
    migration_promise_flag(p, "vnet-hdr", MIGRATION_BREACH_LOAD, true, true);
    migration_promise_flag(p, "no-pic", MIGRATION_BREACH_LOSS, false, true);
    migration_promise_text(p, "ports", NULL, MIGRATION_BREACH_LOAD, "1");
    migration_promise_text(p, "cpu", "vendor", MIGRATION_BREACH_CHANGE, NULL);
    migration_promise_member(p, "disk-writable", MIGRATION_BREACH_LOSS, "0",
                             true, true);
    migration_promise_member(p, "disk-writable", MIGRATION_BREACH_LOSS, "1",
                             false, true);
}

static const VMStateDescription vmstate_returning = {
    .name = "thing", .version_id = 2, .promises = returning_promises,
};

static const VMStateDescription vmstate_perhaps_returning = {
    .name = "thing", .version_id = 2, .promises = returning_promises,
    .needed = has_more,
};

static const VMStateDescription vmstate_part_returning = {
    .name = "thing", .version_id = 2,
    .subsections = (const VMStateDescription *const []) {
        &vmstate_perhaps_returning, NULL
    },
};

/* What a guest that has come here would bring along to where it came from */
static void test_return(void)
{
    static const struct {
        const VMStateDescription *vmsd;
        bool has_more;
        bool sure;
    } cases[] = {
        { &vmstate_returning, false, true },
        /* What may not be sent is nothing, but a part that will be is */
        { &vmstate_perhaps_returning, true, false },
        { &vmstate_part_returning, false, false },
        { &vmstate_part_returning, true, true },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        Thing thing = { .has_more = cases[i].has_more };
        bool sure = cases[i].sure;
        g_autoptr(GPtrArray) limits =
            handshake_limits_collect(cases[i].vmsd, &thing, 2, NULL);
        GHashTable *set = limit_of(limits, "disk-writable", NULL)->set;

        g_assert(limit_of(limits, "vnet-hdr", NULL)->promised == sure);
        g_assert(limit_of(limits, "ports", NULL)->promised == sure);
        g_assert_false(limit_of(limits, "no-pic", NULL)->promised);
        g_assert_false(limit_of(limits, "cpu", "vendor")->promised);
        g_assert_cmpint(GPOINTER_TO_INT(g_hash_table_lookup(set, "0")), ==,
                        HANDSHAKE_MEMBER_HERE |
                        (sure ? HANDSHAKE_MEMBER_PROMISED : 0));
        g_assert_cmpint(GPOINTER_TO_INT(g_hash_table_lookup(set, "1")), ==,
                        HANDSHAKE_MEMBER_HERE);
    }
}

/* What pre_load() may set up is not known before */
static void test_pre_load(void)
{
    Thing thing = thing_new(NULL);
    g_autoptr(GPtrArray) limits =
        handshake_limits_collect(&vmstate_prepared, &thing, 2, NULL);

    g_assert_cmpuint(limits->len, ==, 0);
    assert_promised(&vmstate_prepared, &thing,
        "{ \"counts\": [ { \"name\": \"numbers\", \"value\": 4 } ],"
        "  \"values\": [ { \"name\": \"wanted\","
        "                 \"value\": 18446744073709551615 } ],"
        "  \"bytes\": 16 }");
}

/* A field that a machine always has, but not what a state may have */
static void test_conditional_fields(void)
{
    Thing thing = thing_new(NULL);

    for (int i = 0; i < 4; i++) {
        thing.has_more = i & 1;
        assert_promised(&vmstate_old_and_new[i / 2], &thing,
            "{ \"values\": [ { \"name\": \"parts[0].level\", \"value\": 1 },"
            "               { \"name\": \"parts[0].fixed\", \"value\": 2 } ],"
            "  \"bytes\": 5 }");
    }
}

static void test_left_out(void)
{
    Thing thing = thing_new(NULL);
    g_autofree char *text = NULL;

    thing.buffer = (uint8_t *)numbers;
    text = promised_text(&vmstate_allocated, &thing, NULL);
    g_assert_cmpstr(text, ==, "");
    assert_promised(&vmstate_with_temporary, &thing,
        "{ \"counts\": [ { \"name\": \"numbers\", \"value\": 4 } ],"
        "  \"bytes\": 8 }");
}

static void many_promises(VMStatePromises *p, void *opaque)
{
    for (int i = 0; i < 10000; i++) {
        g_autofree char *name = g_strdup_printf("number%d", i);

        migration_promise_value(p, name, i);
        migration_promise_member(p, "cpu-features", MIGRATION_BREACH_LOSS,
                                 name, true, true);
    }
}

static const VMStateDescription vmstate_many = {
    .name = "thing", .promises = many_promises,
};

static void nested_promises(VMStatePromises *p, void *opaque);

static const VMStateDescription vmstate_nested = {
    .name = "thing", .promises = nested_promises,
};

static void nested_promises(VMStatePromises *p, void *opaque)
{
    ((Thing *)opaque)->hooked++;
    migration_promises_vmsd(p, &vmstate_nested, opaque);
}

/* Whatever a device says, a peer can take it */
static void test_bounds(void)
{
    Thing thing = thing_new(NULL);
    g_autoptr(QDict) dict = handshake_promises_collect(&vmstate_many, &thing, 0,
                                                       NULL);
    g_autoptr(GPtrArray) limits = handshake_limits_collect(&vmstate_many,
                                                           &thing, 0, NULL);

    g_assert_cmpuint(qlist_size(qdict_get_qlist(dict, "values")) +
                     qlist_size(qdict_get_qlist(dict, "cpu-features")), ==,
                     HANDSHAKE_PROMISE_ITEMS_MAX);
    g_assert_cmpuint(limits->len, <=, HANDSHAKE_PROMISE_ITEMS_MAX);
    g_assert_null(handshake_promises_collect(&vmstate_nested, &thing, 0, NULL));
    g_assert_cmpuint(thing.hooked, <=, 16);
}

static void test_bytes(void)
{
    static const struct {
        uint8_t bytes[16];
        const char *text;
    } good[] = {
        { { 0 }, "" },
        { { 1 }, "0:01" },
        { { 0, 0x2a, 0, 0xff }, "1:2a00ff" },
        { { 1, 0, 0, 2 }, "0:01,3:02" },
        { { 1, 0, 2, 0, 0, 3, [15] = 0xab }, "0:010002,5:03,f:ab" },
    };
    static const char *const bad[] = {
        "0", "0:", ":", ":01", "0:1", "0:011", "0:01,", ",0:01", "0:01 ",
        "0:0G", "0:AB", "1000:01", "fff:0102", "ffffffffffffffff0:01",
        "1:01,0:02", "0:0102,1:03", "0:01,0:01", "x:01", "0:01;2:02", "-1:01",
        "0x1:01",
    };

    for (int i = 0; i < ARRAY_SIZE(good); i++) {
        g_autofree char *text = handshake_bytes_to_text(good[i].bytes, 16);
        g_autoptr(GByteArray) bytes = handshake_bytes_from_text(text);

        g_assert_cmpstr(text, ==, good[i].text);
        g_assert_cmpmem(bytes->data, 16, good[i].bytes, 16);
        g_assert_cmpuint(bytes->len, ==, HANDSHAKE_PROMISE_BYTES_MAX);
    }
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_null(handshake_bytes_from_text(bad[i]));
    }
    /* There is more than one way to write it */
    for (int i = 0; i < 2; i++) {
        g_autoptr(GByteArray) bytes =
            handshake_bytes_from_text(i ? "fff:ff" : "00:00,01:02");

        g_assert_cmpuint(bytes->data[1], ==, i ? 0 : 2);
    }
}

static void test_bits(void)
{
    static const char *const bad[] = { "", " ", "0x1", "12G", "AB", "-1" };
    g_autoptr(GArray) one = handshake_bits_from_text("10130007e54");
    g_autoptr(GArray) two =
        handshake_bits_from_text("1fedcba9876543210");

    g_assert_cmpuint(one->len, ==, 1);
    g_assert_cmphex(g_array_index(one, uint64_t, 0), ==, 0x10130007e54);
    g_assert_cmpuint(two->len, ==, 2);
    g_assert_cmphex(g_array_index(two, uint64_t, 0), ==, 0xfedcba9876543210);
    g_assert_cmphex(g_array_index(two, uint64_t, 1), ==, 1);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_null(handshake_bits_from_text(bad[i]));
    }
}

static void test_registers(void)
{
    static const MigrationRegister registers[] = {
        { 0 }, { 1, 0, true }, { 0x11, 0xab, true }, { 0x12, 7 },
        { UINT64_MAX, UINT64_MAX, true },
    };
    static const char *const bad[] = {
        "", ",", "1,", ",1", "=", "=1", "1=", "1=,2", "1,0", "0,0", "1,00",
        "01", "1=00", "1=01", "1,01", "x", "A", "0x1", "-1", "1;2", "1 ,2",
        "1==1", "1=1=1", "1=1,,2", "11111111111111111", "1=11111111111111111",
        "ffffffffffffffff,1", "8000000000000000,8000000000000000",
    };
    g_autofree char *text =
        handshake_registers_to_text(registers, ARRAY_SIZE(registers));
    g_autofree char *none = handshake_registers_to_text(registers, 0);
    g_autofree char *first = handshake_registers_to_text(&registers[2], 1);
    g_autoptr(GArray) back = handshake_registers_from_text(text);

    g_assert_cmpstr(text, ==, "0,1=0,10=ab,1,ffffffffffffffed="
                    "ffffffffffffffff");
    g_assert_cmpstr(none, ==, "");
    g_assert_cmpstr(first, ==, "11=ab");
    g_assert_cmpuint(back->len, ==, ARRAY_SIZE(registers));
    for (guint i = 0; i < back->len; i++) {
        const MigrationRegister *r = &g_array_index(back, MigrationRegister, i);

        g_assert_cmphex(r->number, ==, registers[i].number);
        g_assert_true(r->fixed == registers[i].fixed);
        g_assert_cmphex(r->value, ==, r->fixed ? registers[i].value : 0);
    }
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_null(handshake_registers_from_text(bad[i]));
    }
    for (int more = 0; more < 2; more++) {
        g_autoptr(GString) many = g_string_new("0");
        g_autoptr(GArray) array = NULL;

        for (int i = 1; i < HANDSHAKE_PROMISE_ITEMS_MAX + more; i++) {
            g_string_append(many, ",1");
        }
        array = handshake_registers_from_text(many->str);
        g_assert_true((array == NULL) == more);
    }
}

static char *name_of_register(void *opaque, uint64_t number)
{
    return g_strdup("R");
}

/* The first @n_local of them can be set; the others are what they are */
static void register_promises(VMStatePromises *p, void *opaque)
{
    const Thing *thing = opaque;
    g_autofree MigrationRegister *registers =
        g_new0(MigrationRegister, HANDSHAKE_PROMISE_ITEMS_MAX + 1);

    for (int i = 0; i <= HANDSHAKE_PROMISE_ITEMS_MAX; i++) {
        registers[i].number = i ? i * 16 : 5;
        registers[i].fixed = i >= 2;
        registers[i].value = UINT64_MAX;
    }
    migration_promise_registers(p, "cpu-registers", MIGRATION_BREACH_LOAD,
                                registers, thing->n_local, name_of_register,
                                opaque);
    migration_promise_registers(p, "cpu-registers", MIGRATION_BREACH_LOAD,
                                registers, 1, name_of_register, opaque);
    /* Before all others, between them, one that there is, behind them */
    migration_promise_spare_register(p, "cpu-registers", 17);
    migration_promise_spare_register(p, "cpu-registers", 1);
    migration_promise_spare_register(p, "cpu-registers", 32);
    migration_promise_spare_register(p, "cpu-registers", UINT64_MAX);
    migration_promise_spare_register(p, "other-registers", 1);
}

static const VMStateDescription vmstate_registers = {
    .name = "thing", .promises = register_promises,
};

static void test_registers_collected(void)
{
    static const MigrationRegister here[] = {
        { 1 }, { 5 }, { 16 }, { 17 }, { 32, UINT64_MAX, true }, { UINT64_MAX },
    };
    Thing thing = thing_new(NULL);
    g_autoptr(GPtrArray) limits = NULL;
    const HandshakeLimit *limit;

    thing.n_local = 3;
    assert_promised(&vmstate_registers, &thing,
        "{ \"cpu-registers\": \"5,b,10=ffffffffffffffff\" }");
    limits = handshake_limits_collect(&vmstate_registers, &thing, 0, NULL);
    g_assert_cmpuint(limits->len, ==, 1);
    limit = g_ptr_array_index(limits, 0);
    g_assert_cmpint(limit->rule, ==, HANDSHAKE_RULE_REGISTERS);
    g_assert_cmpuint(limit->registers->len, ==, ARRAY_SIZE(here));
    for (int i = 0; i < ARRAY_SIZE(here); i++) {
        const MigrationRegister *r =
            &g_array_index(limit->registers, MigrationRegister, i);

        g_assert_cmphex(r->number, ==, here[i].number);
        g_assert_true(r->fixed == here[i].fixed);
    }
    g_assert_true(limit->describe_register == name_of_register);
    g_assert_true(limit->opaque == &thing);
    /* There are none, or more than are told, or the text is too long */
    for (int i = 0; i < 3; i++) {
        static const uint32_t n[] = {
            0, HANDSHAKE_PROMISE_ITEMS_MAX + 1, HANDSHAKE_PROMISE_ITEMS_MAX,
        };

        thing.n_local = n[i];
        assert_promised(&vmstate_registers, &thing,
                        "{ \"cpu-registers\": \"5\" }");
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/migration/handshake/promises/source", test_source);
    g_test_add_func("/migration/handshake/promises/subsections",
                    test_subsections);
    g_test_add_func("/migration/handshake/promises/destination",
                    test_destination);
    g_test_add_func("/migration/handshake/promises/pre-load", test_pre_load);
    g_test_add_func("/migration/handshake/promises/return", test_return);
    g_test_add_func("/migration/handshake/promises/conditional-fields",
                    test_conditional_fields);
    g_test_add_func("/migration/handshake/promises/left-out", test_left_out);
    g_test_add_func("/migration/handshake/promises/bounds", test_bounds);
    g_test_add_func("/migration/handshake/promises/bytes", test_bytes);
    g_test_add_func("/migration/handshake/promises/bits", test_bits);
    g_test_add_func("/migration/handshake/promises/registers", test_registers);
    g_test_add_func("/migration/handshake/promises/registers/collected",
                    test_registers_collected);
    return g_test_run();
}
