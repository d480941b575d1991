/*
 * Migration handshake: the JSON that a peer may send
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-types.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "../migration/handshake-json.h"

/* Parses a copy that ends where the text ends, for memory checkers to see */
static QDict *parse_len(const char *text, size_t len, Error **errp)
{
    g_autofree char *copy = g_memdup2(text, len);
    QDict *dict = handshake_json_parse(copy, len, errp);

    g_assert_true(!dict == (errp && *errp));
    return dict;
}

static QDict *parse(const char *text)
{
    return parse_len(text, strlen(text), &error_abort);
}

static void assert_accepted_len(const char *text, size_t len)
{
    Error *err = NULL;
    QDict *dict = parse_len(text, len, &err);

    if (err) {
        g_error("'%.*s' was refused: %s", (int)MIN(len, 200), text,
                error_get_pretty(err));
    }
    qobject_unref(dict);
}

static void assert_accepted(const char *text)
{
    assert_accepted_len(text, strlen(text));
}

/* @why: a part of the message, or NULL */
static void assert_refused_len(const char *text, size_t len, const char *why)
{
    Error *err = NULL;
    QDict *dict = parse_len(text, len, &err);

    if (dict) {
        g_error("'%.*s' was accepted", (int)MIN(len, 200), text);
    }
    if (why && !strstr(error_get_pretty(err), why)) {
        g_error("'%.*s' was refused, but not for '%s': %s",
                (int)MIN(len, 200), text, why, error_get_pretty(err));
    }
    error_free(err);
}

static void assert_refused(const char *text, const char *why)
{
    assert_refused_len(text, strlen(text), why);
}

static void test_accepted(void)
{
    static const char *const texts[] = {
        "{}",
        " \t\r\n{ \t\r\n} \t\r\n",
        "{\"a\":0}",
        " { \"a\" : 0 , \"b\" : [ 1 , 2 ] } ",
        "{\"\":\"\"}",
        "{\"a\":true,\"b\":false,\"c\":null}",
        "{\"a\":[],\"b\":{}}",
        "{\"a\":[[],[[]],{}]}",
        "{\"a\":{\"a\":{\"a\":1}}}",
        "{\"a\":[1,1,1]}",
        "{\"a\":1,\"A\":1}",
        "{\"a\":1,\"a \":1}",
        "{\"a\":{\"x\":1},\"b\":{\"x\":1}}",
        "{\"a\":-0}",
        /* Every escape */
        "{\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\":1}",
        "{\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e4\\uABCD\\uabcd\"}",
        "{\"a\":\"\\u0001\\u001f\\u007f\"}",
        /* A pair of surrogates */
        "{\"a\":\"\\ud83d\\ude00\\uD83D\\uDE00\"}",
        "{\"a\":\"\\ud800\\udc00\\udbff\\udffd\"}",
        /* UTF-8 of 1 to 4 bytes, first and last of each length */
        "{\"a\":\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbd\"}",
        "{\"a\":\"\xed\x9f\xbf\xee\x80\x80\"}",
        "{\"a\":\"\xf0\x90\x80\x80\xf4\x8f\xbf\xbd\"}",
        /* No special meaning in a string */
        "{\"a\":\"'%s%d%% /* no comment */ // \"}",
    };

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        assert_accepted(texts[i]);
    }
}

static void test_refused(void)
{
    static const struct {
        const char *text;
        const char *why;
    } texts[] = {
        /* Not one object */
        { "", "expected an object" },
        { " ", "expected an object" },
        { "0", "expected an object" },
        { "\"a\"", "expected an object" },
        { "null", "expected an object" },
        { "true", "expected an object" },
        { "[]", "expected an object" },
        { "[{}]", "expected an object" },
        { "}", "expected an object" },
        { "\xef\xbb\xbf{}", "expected an object" },
        { "\v{}", "expected an object" },
        { "\f{}", "expected an object" },
        { "\xc2\xa0{}", "expected an object" },
        { "{}{}", "more than one value" },
        { "{} {}", "more than one value" },
        { "{},{}", "more than one value" },
        { "{},", "more than one value" },
        { "{}0", "more than one value" },
        { "{}}", "more than one value" },
        { "{}]", "more than one value" },
        { "{}x", "more than one value" },
        { "{}\v", "more than one value" },
        { "{}\x01", "more than one value" },

        /* Unterminated or out of order */
        { "{", NULL },
        { "{\"a\"", NULL },
        { "{\"a\":", NULL },
        { "{\"a\":1", NULL },
        { "{\"a\":1,", NULL },
        { "{\"a\":\"b", "unterminated string" },
        { "{\"a\":\"b\\", NULL },
        { "{\"a\":[", NULL },
        { "{\"a\":[1", NULL },
        { "{\"a\":[1,", NULL },
        { "{\"a\":[1}", NULL },
        { "{\"a\":1]", NULL },
        { "{\"a\":[}]", NULL },
        { "{]", NULL },
        { "{,}", NULL },
        { "{\"a\":1,}", NULL },
        { "{,\"a\":1}", NULL },
        { "{\"a\":1,,\"b\":1}", NULL },
        { "{\"a\":1 \"b\":1}", NULL },
        { "{\"a\" 1}", "expected ':'" },
        { "{\"a\"}", "expected ':'" },
        { "{\"a\",1}", "expected ':'" },
        { "{\"a\"::1}", NULL },
        { "{\"a\":}", NULL },
        { "{:1}", NULL },
        { "{\"a\":[,]}", NULL },
        { "{\"a\":[1,]}", NULL },
        { "{\"a\":[,1]}", NULL },
        { "{\"a\":[1 2]}", NULL },
        { "{\"a\":[\"b\":1]}", NULL },
        { "{1:1}", "double quotes" },
        { "{a:1}", "double quotes" },
        { "{null:1}", "double quotes" },

        /* What QEMU's parser takes besides */
        { "{'a':1}", "double quotes" },
        { "{\"a\":'b'}", NULL },
        { "{\"a\":\"\\'\"}", "unknown escape" },
        { "{\"a\":%d}", NULL },
        { "{%s:1}", NULL },

        /* Literals */
        { "{\"a\":True}", NULL },
        { "{\"a\":TRUE}", NULL },
        { "{\"a\":tru}", NULL },
        { "{\"a\":truee}", NULL },
        { "{\"a\":nul}", NULL },
        { "{\"a\":nil}", NULL },
        { "{\"a\":undefined}", NULL },
        { "{\"a\":NaN}", NULL },
        { "{\"a\":Infinity}", NULL },
        { "{\"a\":-Infinity}", NULL },
        { "{\"a\":/* b */1}", NULL },
        { "{\"a\":1}// b", NULL },
        { "{\"a\":(1)}", NULL },
        { "{\"a\":;}", NULL },

        /* Escapes */
        { "{\"a\":\"\\x41\"}", "unknown escape" },
        { "{\"a\":\"\\0\"}", "unknown escape" },
        { "{\"a\":\"\\a\"}", "unknown escape" },
        { "{\"a\":\"\\v\"}", "unknown escape" },
        { "{\"a\":\"\\ \"}", "unknown escape" },
        { "{\"a\":\"\\U0041\"}", "unknown escape" },
        { "{\"a\":\"\\\n\"}", "unknown escape" },
        { "{\"a\":\"\\\xc3\xa4\"}", "unknown escape" },
        { "{\"a\":\"\\u\"}", "hexadecimal" },
        { "{\"a\":\"\\u4\"}", "hexadecimal" },
        { "{\"a\":\"\\u41\"}", "hexadecimal" },
        { "{\"a\":\"\\u041\"}", "hexadecimal" },
        { "{\"a\":\"\\u004g\"}", "hexadecimal" },
        { "{\"a\":\"\\u+041\"}", "hexadecimal" },
        { "{\"a\":\"\\u 041\"}", "hexadecimal" },
        { "{\"a\":\"\\u-001\"}", "hexadecimal" },
        { "{\"a\":\"\\u{41}\"}", "hexadecimal" },

        /* U+0000 in each of its forms but the raw one */
        { "{\"a\":\"\\u0000\"}", "U+0000" },
        { "{\"a\\u0000\":1}", "U+0000" },
        { "{\"a\":\"b\\u0000c\"}", "U+0000" },
        { "{\"a\":\"\xc0\x80\"}", "invalid UTF-8" },
        { "{\"\xc0\x80\":1}", "invalid UTF-8" },
        { "{\"a\":\"\xe0\x80\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf0\x80\x80\x80\"}", "invalid UTF-8" },

        /* Surrogates */
        { "{\"a\":\"\\ud800\"}", "surrogate" },
        { "{\"a\":\"\\udbff\"}", "surrogate" },
        { "{\"a\":\"\\udc00\"}", "surrogate" },
        { "{\"a\":\"\\udfff\"}", "surrogate" },
        { "{\"a\":\"\\ud800x\"}", "surrogate" },
        { "{\"a\":\"\\ud800\\n\"}", "surrogate" },
        { "{\"a\":\"\\ud800\\u0041\"}", "surrogate" },
        { "{\"a\":\"\\ud800\\ud800\"}", "surrogate" },
        { "{\"a\":\"\\ud800\\ue000\"}", "surrogate" },
        { "{\"a\":\"\\udc00\\ud800\"}", "surrogate" },
        { "{\"a\":\"\\ud800\\u\"}", "hexadecimal" },
        { "{\"\\ud800\":1}", "surrogate" },
        { "{\"a\":\"\xed\xa0\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xed\xbf\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xed\xa0\x80\xed\xb0\x80\"}", "invalid UTF-8" },

        /* UTF-8 */
        { "{\"a\":\"\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xc3\"}", "invalid UTF-8" },
        { "{\"a\":\"\xc3\xc3\"}", "invalid UTF-8" },
        { "{\"a\":\"\xe4\xbd\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf0\x9f\x98\"}", "invalid UTF-8" },
        { "{\"a\":\"\xc1\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xe0\x9f\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf0\x8f\xbf\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf4\x90\x80\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf8\x88\x80\x80\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xfc\x84\x80\x80\x80\x80\"}", "invalid UTF-8" },
        { "{\"a\":\"\xfe\"}", "invalid UTF-8" },
        { "{\"a\":\"\xff\"}", "invalid UTF-8" },
        /* Noncharacters */
        { "{\"a\":\"\xef\xbf\xbe\"}", "invalid UTF-8" },
        { "{\"a\":\"\xef\xbf\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xef\xb7\x90\"}", "invalid UTF-8" },
        { "{\"a\":\"\xef\xb7\xaf\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf0\x9f\xbf\xbe\"}", "invalid UTF-8" },
        { "{\"a\":\"\xf4\x8f\xbf\xbf\"}", "invalid UTF-8" },
        { "{\"a\":\"\\ufffe\"}", NULL },
        { "{\"a\":\"\\uffff\"}", NULL },
        { "{\"a\":\"\\ufdd0\"}", NULL },
        { "{\"a\":\"\\ufdef\"}", NULL },
        { "{\"a\":\"\\ud83f\\udffe\"}", NULL },
        { "{\"a\":\"\\udbff\\udfff\"}", NULL },
        { "{\"\\uffff\":1}", NULL },
        { "{\"\xff\":1}", "invalid UTF-8" },
        { "{\"a\":\"\xc3", "invalid UTF-8" },
        { "{\xc3\xa4:1}", NULL },

        /* Numbers */
        { "{\"a\":1.0}", "fraction" },
        { "{\"a\":1.}", "fraction" },
        { "{\"a\":.5}", NULL },
        { "{\"a\":1e0}", "exponent" },
        { "{\"a\":1E2}", "exponent" },
        { "{\"a\":1e+2}", "exponent" },
        { "{\"a\":-0.0}", "fraction" },
        { "{\"a\":0e0}", "exponent" },
        { "{\"a\":00}", "leading zero" },
        { "{\"a\":01}", "leading zero" },
        { "{\"a\":-01}", "leading zero" },
        { "{\"a\":-00}", "leading zero" },
        { "{\"a\":0x10}", NULL },
        { "{\"a\":+1}", NULL },
        { "{\"a\":-}", NULL },
        { "{\"a\":--1}", NULL },
        { "{\"a\":- 1}", NULL },
        { "{\"a\":1-}", NULL },
        { "{\"a\":1a}", NULL },
        { "{\"a\":1 0}", NULL },
        { "{\"a\":1_000}", NULL },
        { "{\"a\":-9223372036854775809}", "out of range" },
        { "{\"a\":-9223372036854775810}", "out of range" },
        { "{\"a\":-18446744073709551615}", "out of range" },
        { "{\"a\":18446744073709551616}", "out of range" },
        { "{\"a\":18446744073709551620}", "out of range" },
        { "{\"a\":18446744073709551625}", "out of range" },
        { "{\"a\":99999999999999999999}", "out of range" },
        { "{\"a\":340282366920938463463374607431768211456}", "out of range" },

        /* Duplicates */
        { "{\"a\":1,\"a\":1}", "duplicate member" },
        { "{\"a\":1,\"b\":2,\"a\":\"c\"}", "duplicate member" },
        { "{\"a\":1,\"\\u0061\":1}", "duplicate member" },
        { "{\"/\":1,\"\\/\":1}", "duplicate member" },
        { "{\"\xc3\xa4\":1,\"\\u00E4\":1}", "duplicate member" },
        { "{\"\xf0\x9f\x98\x80\":1,\"\\ud83d\\ude00\":1}", "duplicate member" },
        { "{\"\":1,\"\":1}", "duplicate member" },
        { "{\"x\":{\"a\":1,\"a\":1}}", "duplicate member" },
        { "{\"x\":[0,{\"a\":1,\"a\":1}]}", "duplicate member" },
        { "{\"x\":{\"y\":[[{\"z\":{\"a\":1,\"\\u0061\":1}}]]}}",
          "duplicate member" },
        { "{\"a\":{},\"b\":1,\"a\":{}}", "duplicate member" },
    };

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        assert_refused(texts[i].text, texts[i].why);
    }
}

/* Control characters, U+0000 among them, in a string, a name, and outside */
static void test_control(void)
{
    static const char space[] = " \t\n\r";

    for (int c = 0; c < 0x20; c++) {
        char in_string[] = "{\"a\":\"b?c\"}";
        char in_name[] = "{\"a?\":1}";
        char before[] = "?{}";
        char inside[] = "{?}";
        char after[] = "{}?";

        *strchr(in_string, '?') = c;
        *strchr(in_name, '?') = c;
        *strchr(before, '?') = c;
        *strchr(inside, '?') = c;
        *strchr(after, '?') = c;
        assert_refused_len(in_string, strlen("{\"a\":\"b?c\"}"), "control");
        assert_refused_len(in_name, strlen("{\"a?\":1}"), "control");
        if (c && strchr(space, c)) {
            assert_accepted_len(before, 3);
            assert_accepted_len(inside, 3);
            assert_accepted_len(after, 3);
        } else {
            assert_refused_len(before, 3, "expected an object");
            assert_refused_len(inside, 3, NULL);
            assert_refused_len(after, 3, "more than one value");
        }
    }
}

/* @len says where the text ends, not what is in memory behind it */
static void test_length(void)
{
    QDict *dict = handshake_json_parse("{\"a\":1}}}}garbage", 7, &error_abort);

    g_assert_cmpint(qdict_get_int(dict, "a"), ==, 1);
    qobject_unref(dict);

    assert_refused_len("{\"a\":12}", 7, NULL);
    assert_refused_len("{\"a\":\"\xc3\xa4\"}", 7, "invalid UTF-8");
    assert_refused_len("{\"a\":true}", 8, NULL);
    assert_refused_len("{\"a\":\"\\u0041\"}", 11, "hexadecimal");
}

/* @depth levels in all, each of them what @kinds says in turn: '{' or '[' */
static char *nested(int depth, const char *kinds)
{
    g_autoptr(GString) close = g_string_new(NULL);
    GString *text = g_string_new(NULL);

    for (int i = 0; i < depth; i++) {
        bool object = !i || kinds[i % strlen(kinds)] == '{';

        g_string_append(text, object ? "{\"a\":" : "[");
        g_string_prepend_c(close, object ? '}' : ']');
    }
    g_string_append(text, "1");
    g_string_append(text, close->str);
    return g_string_free(text, false);
}

static void test_depth(void)
{
    static const char *const kinds[] = { "{", "[", "{[", "[{", "{[[", "{{[[[" };
    static const int bad[] = { 17, 18, 100, 1024, 1025, 50000 };

    for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
        for (int depth = 1; depth <= 16; depth++) {
            g_autofree char *text = nested(depth, kinds[i]);

            assert_accepted(text);
        }
        for (int j = 0; j < ARRAY_SIZE(bad); j++) {
            g_autofree char *text = nested(bad[j], kinds[i]);

            assert_refused(text, "nested too deeply");
            /* Without the closing brackets */
            text[strcspn(text, "1")] = '\0';
            assert_refused(text, "nested too deeply");
        }
    }

    /* It is the depth that counts, not how many there are */
    assert_accepted("{\"a\":[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],"
                    "[],{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}");
    /* Empty ones count, too */
    assert_accepted("{\"a\":[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]}");
    assert_refused("{\"a\":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}",
                   "nested too deeply");
    assert_refused("{\"a\":[[[[[[[[[[[[[[[{}]]]]]]]]]]]]]]]}",
                   "nested too deeply");
}

static void test_name_length(void)
{
    static const struct {
        const char *unit;       /* of the name in JSON */
        size_t bytes;           /* in the name itself */
    } units[] = {
        { "x", 1 },
        { "\\u0041", 1 },
        { "\\n", 1 },
        { "\xc3\xa4", 2 },
        { "\\u00e4", 2 },
        { "\\ud83d\\ude00", 4 },
    };

    for (int i = 0; i < ARRAY_SIZE(units); i++) {
        for (size_t len = 251; len <= 260; len++) {
            g_autoptr(GString) text = g_string_new("{\"a\":{\"");
            size_t size = 0;

            for (; size + units[i].bytes <= len; size += units[i].bytes) {
                g_string_append(text, units[i].unit);
            }
            for (; size < len; size++) {
                g_string_append(text, "y");
            }
            g_string_append(text, "\":1}}");
            if (len <= 255) {
                assert_accepted(text->str);
            } else {
                assert_refused(text->str, "name too long");
            }
        }
    }
}

/* Values may be as long as they like */
static void test_long_value(void)
{
    g_autofree char *value = g_strnfill(500000, 'x');
    g_autofree char *text = g_strdup_printf("{\"a\":\"%s\"}", value);
    QDict *dict = parse(text);

    g_assert_cmpstr(qdict_get_str(dict, "a"), ==, value);
    qobject_unref(dict);
}

static void test_integers(void)
{
    static const char *const texts[] = {
        "0", "1", "-1", "9", "10", "255", "4294967295", "4294967296",
        /* Where doubles become coarse */
        "9007199254740991", "9007199254740992", "9007199254740993",
        "-9007199254740993", "1152921504606846977",
        "9223372036854775806", "9223372036854775807",
        "9223372036854775808", "9223372036854775809",
        "18446744073709551609", "18446744073709551610",
        "18446744073709551614", "18446744073709551615",
        "-9223372036854775799", "-9223372036854775800",
        "-9223372036854775807", "-9223372036854775808",
    };

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        g_autofree char *text = g_strdup_printf("{\"a\":%s}", texts[i]);
        QDict *dict = parse(text);
        QNum *num = qobject_to(QNum, qdict_get(dict, "a"));
        bool negative = texts[i][0] == '-';
        g_autofree char *again = qnum_to_string(num);
        uint64_t u = 0;
        int64_t s = 0;

        g_assert_cmpint(num->kind, !=, QNUM_DOUBLE);
        g_assert_cmpstr(again, ==, texts[i]);
        g_assert_true(qnum_get_try_uint(num, &u) == !negative);
        if (negative) {
            g_assert_true(qnum_get_try_int(num, &s));
            g_assert_cmpint(s, ==, g_ascii_strtoll(texts[i], NULL, 10));
        } else {
            g_assert_cmpuint(u, ==, g_ascii_strtoull(texts[i], NULL, 10));
        }
        qobject_unref(dict);
    }
}

static void test_strings(void)
{
    static const struct {
        const char *text;
        const char *value;
    } strings[] = {
        { "{\"a\":\"\"}", "" },
        { "{\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t" },
        { "{\"a\":\"\\u0041\\u00e4\\u20AC\\ud83d\\ude00\"}",
          "A\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80" },
        { "{\"a\":\"A\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"}",
          "A\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80" },
        { "{\"\\u0061\":\"b\"}", "b" },
        { "{\"a\":\"%d %s %% 'x'\"}", "%d %s %% 'x'" },
    };

    for (int i = 0; i < ARRAY_SIZE(strings); i++) {
        QDict *dict = parse(strings[i].text);

        g_assert_cmpuint(qdict_size(dict), ==, 1);
        g_assert_cmpstr(qdict_get_str(dict, "a"), ==, strings[i].value);
        qobject_unref(dict);
    }
}

#define VALID_TEXT                                                      \
    "{ \"a\" : [ 1, -23, true, false, null, \"\\u00e4\\ud83d\\ude00\" ],\n"  \
    "  \"b\\n\" : { \"c\" : {}, \"d\" : [],"                              \
    "            \"\xc3\xa4\" : \"\xe2\x82\xac\" },"                      \
    "  \"e\" : 18446744073709551615 }"

static void test_cut(void)
{
    assert_accepted(VALID_TEXT);
    for (size_t len = 0; len < strlen(VALID_TEXT); len++) {
        assert_refused_len(VALID_TEXT, len, NULL);
    }
    for (size_t skip = 1; skip < strlen(VALID_TEXT); skip++) {
        Error *err = NULL;
        QDict *dict = parse_len(VALID_TEXT + skip, strlen(VALID_TEXT) - skip,
                                &err);

        qobject_unref(dict);
        error_free(err);
    }
}

/* With any byte anywhere: refused, or accepted and then a plain value */
static void test_any_byte(void)
{
    g_autofree char *text = g_strdup(VALID_TEXT);
    size_t len = strlen(text);

    for (size_t pos = 0; pos < len; pos++) {
        for (int c = 0; c <= 255; c++) {
            Error *err = NULL;
            QDict *dict;

            text[pos] = c;
            dict = parse_len(text, len, &err);
            if (dict) {
                g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));
                QDict *again = parse(json->str);

                g_assert_true(qobject_is_equal(QOBJECT(dict), QOBJECT(again)));
                qobject_unref(again);
                qobject_unref(dict);
            }
            error_free(err);
        }
        text[pos] = VALID_TEXT[pos];
    }
}

/* As many members as one object may have, and one more */
static void test_many_members(void)
{
    g_autoptr(GString) text = g_string_new("{\"\":0");
    QDict *dict;

    for (int i = 0; i < HANDSHAKE_JSON_MEMBERS_MAX - 1; i++) {
        g_string_append_printf(text, ",\"%x\":%d", i, i % 10);
    }
    g_string_append(text, "}");
    dict = parse(text->str);
    g_assert_cmpuint(qdict_size(dict), ==, HANDSHAKE_JSON_MEMBERS_MAX);
    g_assert_cmpint(qdict_get_int(dict, "f3"), ==, 3);
    qobject_unref(dict);

    g_string_truncate(text, text->len - 1);
    g_string_append(text, ",\"more\":0}");
    assert_refused(text->str, "too many members");
}

static void test_duplicate_far_away(void)
{
    g_autoptr(GString) text = g_string_new("{\"first\":0");

    for (int i = 0; i < 200; i++) {
        g_string_append_printf(text, ",\"%x\":0", i);
    }
    g_string_append(text, ",\"first\":0}");
    assert_refused(text->str, "duplicate member");
}

/* As many objects as a message may have, and one more */
static void test_many_objects(void)
{
    g_autoptr(GString) text = g_string_new("{\"a\":[{}");

    for (int i = 2; i < HANDSHAKE_JSON_OBJECTS_MAX; i++) {
        g_string_append(text, ",{}");
    }
    g_string_append(text, "]}");
    assert_accepted(text->str);

    g_string_truncate(text, text->len - 2);
    g_string_append(text, ",{}]}");
    assert_refused(text->str, "too many objects");
}

static void assert_names(Error **err, const char *name)
{
    g_autofree char *expected = g_strdup_printf("member '%s' is not", name);

    g_assert_nonnull(*err);
    g_assert_nonnull(strstr(error_get_pretty(*err), expected));
    error_free(*err);
    *err = NULL;
}

/* One member of each type */
#define TYPES_TEXT                                                      \
    "{\"string\":\"text\",\"true\":true,\"false\":false,\"uint\":7,"    \
    "\"big\":18446744073709551615,\"negative\":-1,\"null\":null,"       \
    "\"object\":{\"a\":1},\"list\":[\"a\",1,\"b\",null,[\"c\"],\"d\"]}"

static void test_get_scalar(void)
{
    QDict *dict = parse(TYPES_TEXT);
    const QDictEntry *entry;
    char *str = NULL;
    uint64_t uint = 5;
    bool flag = true;

    g_assert_true(handshake_json_get_str(dict, "string", &str, &error_abort));
    g_assert_cmpstr(str, ==, "text");
    /* Again: the old one is freed */
    g_assert_true(handshake_json_get_str(dict, "string", &str, &error_abort));
    g_assert_cmpstr(str, ==, "text");
    g_assert_true(handshake_json_get_str(dict, "absent", &str, &error_abort));
    g_assert_cmpstr(str, ==, "text");

    g_assert_true(handshake_json_get_bool(dict, "absent", &flag, &error_abort));
    g_assert_true(flag);
    g_assert_true(handshake_json_get_bool(dict, "false", &flag, &error_abort));
    g_assert_false(flag);
    g_assert_true(handshake_json_get_bool(dict, "true", &flag, &error_abort));
    g_assert_true(flag);

    g_assert_true(handshake_json_get_uint(dict, "absent", &uint, &error_abort));
    g_assert_cmpuint(uint, ==, 5);
    g_assert_true(handshake_json_get_uint(dict, "uint", &uint, &error_abort));
    g_assert_cmpuint(uint, ==, 7);
    g_assert_true(handshake_json_get_uint(dict, "big", &uint, &error_abort));
    g_assert_cmpuint(uint, ==, UINT64_MAX);

    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        const char *name = qdict_entry_key(entry);
        Error *err = NULL;

        if (strcmp(name, "string")) {
            g_assert_false(handshake_json_get_str(dict, name, &str, &err));
            assert_names(&err, name);
            g_assert_cmpstr(str, ==, "text");
        }
        if (strcmp(name, "true") && strcmp(name, "false")) {
            g_assert_false(handshake_json_get_bool(dict, name, &flag, &err));
            assert_names(&err, name);
            g_assert_true(flag);
        }
        if (strcmp(name, "uint") && strcmp(name, "big")) {
            g_assert_false(handshake_json_get_uint(dict, name, &uint, &err));
            assert_names(&err, name);
            g_assert_cmpuint(uint, ==, UINT64_MAX);
        }
    }
    g_free(str);
    qobject_unref(dict);
}

static void test_get_container(void)
{
    QDict *dict = parse(TYPES_TEXT);
    const QDictEntry *entry;
    QDict *object = NULL;
    QList *list = NULL;
    strList *strings = NULL;

    g_assert_true(handshake_json_get_dict(dict, "absent", &object,
                                          &error_abort));
    g_assert_null(object);
    g_assert_true(handshake_json_get_list(dict, "absent", &list, &error_abort));
    g_assert_null(list);
    g_assert_true(handshake_json_get_strlist(dict, "absent", true, &strings,
                                             &error_abort));
    g_assert_null(strings);

    g_assert_true(handshake_json_get_dict(dict, "object", &object,
                                          &error_abort));
    g_assert_cmpint(qdict_get_int(object, "a"), ==, 1);
    g_assert_true(handshake_json_get_list(dict, "list", &list, &error_abort));
    g_assert_cmpuint(qlist_size(list), ==, 6);

    /* Twice: the old one is freed */
    for (int i = 0; i < 2; i++) {
        g_assert_true(handshake_json_get_strlist(dict, "list", false, &strings,
                                                 &error_abort));
        g_assert_cmpstr(strings->value, ==, "a");
        g_assert_cmpstr(strings->next->value, ==, "b");
        g_assert_cmpstr(strings->next->next->value, ==, "d");
        g_assert_null(strings->next->next->next);
    }
    g_assert_true(handshake_json_get_strlist(dict, "absent", false, &strings,
                                             &error_abort));
    g_assert_nonnull(strings);

    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        const char *name = qdict_entry_key(entry);
        Error *err = NULL;

        if (strcmp(name, "object")) {
            g_assert_false(handshake_json_get_dict(dict, name, &object, &err));
            assert_names(&err, name);
        }
        if (strcmp(name, "list")) {
            g_assert_false(handshake_json_get_list(dict, name, &list, &err));
            assert_names(&err, name);
            g_assert_false(handshake_json_get_strlist(dict, name, false,
                                                      &strings, &err));
            assert_names(&err, name);
        }
        /* Here not even the list will do: there is more than strings in it */
        g_assert_false(handshake_json_get_strlist(dict, name, true, &strings,
                                                  &err));
        assert_names(&err, name);
    }
    qapi_free_strList(strings);
    qobject_unref(dict);
}

static void test_strlist(void)
{
    strList c = { .value = (char *)"c" };
    strList b = { .next = &c, .value = (char *)"" };
    strList a = { .next = &b, .value = (char *)"a" };
    QDict *dict = qdict_new();
    strList *list = NULL;

    g_assert_true(handshake_strlist_contains(&a, "a"));
    g_assert_true(handshake_strlist_contains(&a, ""));
    g_assert_true(handshake_strlist_contains(&a, "c"));
    g_assert_false(handshake_strlist_contains(&a, "b"));
    g_assert_false(handshake_strlist_contains(&a, "cc"));
    g_assert_false(handshake_strlist_contains(&a, "C"));
    g_assert_false(handshake_strlist_contains(NULL, "a"));

    handshake_json_put_strlist(dict, "list", &a);
    handshake_json_put_strlist(dict, "empty", NULL);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(dict, "empty")), ==, 0);
    for (int strict = 0; strict < 2; strict++) {
        g_assert_true(handshake_json_get_strlist(dict, "list", strict, &list,
                                                 &error_abort));
        g_assert_cmpstr(list->value, ==, "a");
        g_assert_cmpstr(list->next->value, ==, "");
        g_assert_cmpstr(list->next->next->value, ==, "c");
        g_assert_null(list->next->next->next);
        g_assert_true(handshake_json_get_strlist(dict, "empty", strict, &list,
                                                 &error_abort));
        g_assert_null(list);
    }
    qobject_unref(dict);
}

static void test_text(void)
{
    static const struct {
        const char *name;
        const char *text;
    } texts[] = {
        { "string", "text" },
        { "true", "true" },
        { "uint", "7" },
        { "big", "18446744073709551615" },
        { "negative", "-1" },
        { "null", "null" },
        { "object", "{\"a\": 1}" },
        { "absent", "(unset)" },
    };
    QDict *dict = parse(TYPES_TEXT);

    for (int i = 0; i < ARRAY_SIZE(texts); i++) {
        g_autofree char *text =
            handshake_json_text(qdict_get(dict, texts[i].name));

        g_assert_cmpstr(text, ==, texts[i].text);
    }
    qobject_unref(dict);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/migration/handshake/json/accepted", test_accepted);
    g_test_add_func("/migration/handshake/json/refused", test_refused);
    g_test_add_func("/migration/handshake/json/control", test_control);
    g_test_add_func("/migration/handshake/json/length", test_length);
    g_test_add_func("/migration/handshake/json/depth", test_depth);
    g_test_add_func("/migration/handshake/json/name-length", test_name_length);
    g_test_add_func("/migration/handshake/json/long-value", test_long_value);
    g_test_add_func("/migration/handshake/json/integers", test_integers);
    g_test_add_func("/migration/handshake/json/strings", test_strings);
    g_test_add_func("/migration/handshake/json/cut", test_cut);
    g_test_add_func("/migration/handshake/json/any-byte", test_any_byte);
    g_test_add_func("/migration/handshake/json/many-members",
                    test_many_members);
    g_test_add_func("/migration/handshake/json/duplicate-far-away",
                    test_duplicate_far_away);
    g_test_add_func("/migration/handshake/json/many-objects",
                    test_many_objects);
    g_test_add_func("/migration/handshake/json/get/scalar", test_get_scalar);
    g_test_add_func("/migration/handshake/json/get/container",
                    test_get_container);
    g_test_add_func("/migration/handshake/json/strlist", test_strlist);
    g_test_add_func("/migration/handshake/json/text", test_text);

    return g_test_run();
}
