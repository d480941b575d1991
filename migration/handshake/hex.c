/*
 * Migration handshake: bytes and bits as texts that people can read
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "promises.h"

static const char digits[] = "0123456789abcdef";

/* The end of a run of bytes: a single zero costs less than a new run */
static size_t run_end(const uint8_t *bytes, size_t begin, size_t size)
{
    size_t end = begin + 1;

    while (end < size &&
           (bytes[end] || (end + 1 < size && bytes[end + 1]))) {
        end++;
    }
    return end;
}

char *handshake_bytes_to_text(const uint8_t *bytes, size_t size)
{
    GString *text = g_string_new(NULL);
    size_t begin, end;

    for (begin = 0; begin < size; begin = end + 1) {
        end = begin;
        if (!bytes[begin]) {
            continue;
        }
        end = run_end(bytes, begin, size);
        g_string_append_printf(text, "%s%zx:", text->len ? "," : "", begin);
        for (size_t i = begin; i < end; i++) {
            g_string_append_c(text, digits[bytes[i] >> 4]);
            g_string_append_c(text, digits[bytes[i] & 0xf]);
        }
    }
    return g_string_free(text, FALSE);
}

/* In lower case only: there is one way to write it */
static int digit_value(char c)
{
    const char *at = c ? strchr(digits, c) : NULL;

    return at ? at - digits : -1;
}

/* Returns: the first byte after the number, or NULL */
static const char *get_offset(const char *p, size_t *offset)
{
    const char *begin = p;

    for (*offset = 0; digit_value(*p) >= 0; p++) {
        *offset = *offset * 16 + digit_value(*p);
        if (*offset >= HANDSHAKE_PROMISE_BYTES_MAX) {
            return NULL;
        }
    }
    return p > begin && *p == ':' ? p + 1 : NULL;
}

GByteArray *handshake_bytes_from_text(const char *text)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    size_t at, min = 0;
    const char *p = text;

    g_byte_array_set_size(bytes, HANDSHAKE_PROMISE_BYTES_MAX);
    memset(bytes->data, 0, bytes->len);
    while (*p) {
        p = get_offset(p, &at);
        if (!p || at < min || digit_value(*p) < 0) {
            return NULL;
        }
        for (; digit_value(*p) >= 0; p += 2) {
            if (digit_value(p[1]) < 0 || at >= bytes->len) {
                return NULL;
            }
            bytes->data[at++] = digit_value(p[0]) << 4 | digit_value(p[1]);
        }
        min = at;
        if (*p == ',' && p[1]) {
            p++;
        } else if (*p) {
            return NULL;
        }
    }
    return g_steal_pointer(&bytes);
}

GArray *handshake_bits_from_text(const char *text)
{
    size_t len = strlen(text);
    size_t words = MAX(DIV_ROUND_UP(len, 16), 1);
    g_autoptr(GArray) bits = g_array_sized_new(false, true, sizeof(uint64_t),
                                               words);

    g_array_set_size(bits, words);
    for (size_t i = 0; i < len; i++) {
        int value = digit_value(text[len - 1 - i]);

        if (value < 0) {
            return NULL;
        }
        g_array_index(bits, uint64_t, i / 16) |= (uint64_t)value << i % 16 * 4;
    }
    return len ? g_steal_pointer(&bits) : NULL;
}

char *handshake_registers_to_text(const MigrationRegister *registers, size_t n)
{
    GString *text = g_string_new(NULL);
    uint64_t before = 0;

    for (size_t i = 0; i < n; i++) {
        g_string_append_printf(text, "%s%" PRIx64, i ? "," : "",
                               registers[i].number - before);
        if (registers[i].fixed) {
            g_string_append_printf(text, "=%" PRIx64, registers[i].value);
        }
        before = registers[i].number;
    }
    return g_string_free(text, FALSE);
}

/* Returns: the first byte after the number, or NULL */
static const char *get_number(const char *p, uint64_t *number)
{
    const char *begin = p;

    for (*number = 0; digit_value(*p) >= 0; p++) {
        /* One that begins with zeros could be longer than it looks */
        if (p - begin == 16 || (p > begin && *begin == '0')) {
            return NULL;
        }
        *number = *number << 4 | digit_value(*p);
    }
    return p > begin ? p : NULL;
}

GArray *handshake_registers_from_text(const char *text)
{
    g_autoptr(GArray) registers = g_array_new(false, true,
                                              sizeof(MigrationRegister));
    MigrationRegister next = {};
    const char *p = text;

    while (true) {
        uint64_t before = next.number;

        p = get_number(p, &next.number);
        if (!p || (registers->len && !next.number) ||
            uadd64_overflow(next.number, before, &next.number) ||
            registers->len == HANDSHAKE_PROMISE_ITEMS_MAX) {
            return NULL;
        }
        next.fixed = *p == '=';
        next.value = 0;
        p = next.fixed ? get_number(p + 1, &next.value) : p;
        if (!p) {
            return NULL;
        }
        g_array_append_val(registers, next);
        if (!*p) {
            return g_steal_pointer(&registers);
        }
        if (*p++ != ',') {
            return NULL;
        }
    }
}
