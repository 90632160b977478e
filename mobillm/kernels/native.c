/* Quantize and pack, unpack and dequantize: the optional native backend of mobillm.kernels.
 *
 * The layout of the bytes and every step are normative: docs/packed-tensors.md. mobillm/kernels/native.py is
 * the one caller. All lengths are checked here, before any memory is touched, against the buffers' own sizes;
 * what the packed bytes hold is not checked, any content decodes to something (P16).
 *
 * The code is compiled once for each instruction set, from the same sources; LEVELS says which of them the
 * processor can run, the fastest last.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <fenv.h>
#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || FLT_EVAL_METHOD != 0
#error "needs GCC or Clang, a little-endian processor, and fp32 arithmetic in fp32"
#endif
#if defined(__x86_64__) && !defined(__clang__)
#define HAS_LEVELS /* Clang has no pragma that sets the target of intrinsic functions' callers */
#include <cpuid.h>
#include <immintrin.h>
#endif

/* Wire codes of mobillm.formats.Format. */
enum format { F32 = 0, F16 = 1, BF16 = 2, ASYM2 = 18, ASYM4 = 20, ASYM8 = 24, NF4 = 36, FP4 = 37, F8 = 40 };
enum kind { KIND_F32 = 0, KIND_F16 = 1, KIND_BF16 = 2 };

enum { LONGEST = 128, PLAIN = 2048 };
/* Bytes: how far ahead packed ones are fetched, and from which size on decoded values go past the caches. A core's
 * own cache does not keep so many, and nobody reads them before the other tensors of their batch are decoded. */
enum { AHEAD = 2048, STREAMED = 1 << 20 };
enum { HALF_MAX = 0x477FE000 }; /* 65504 as fp32 */

/* Numbers at any address. */
typedef float __attribute__((aligned(1), may_alias)) loose_f32;
typedef uint16_t __attribute__((aligned(1), may_alias)) loose_u16;

struct encode_job {
    const void *x;
    const loose_f32 *factors;
    const uint8_t *table;
    uint8_t *out;
    size_t rows, width, row_size;
    int block, bits, trailer;
    enum kind kind;
    enum format format;
};

struct decode_job {
    const uint8_t *packed;
    const loose_f32 *factors, *table;
    loose_f32 *out;
    size_t rows, width, row_size;
    int block, bits, trailer;
    enum format format;
    bool stream;
};

#define INLINE static inline __attribute__((always_inline))

static inline bool is_asym(enum format format)
{
    return format >= ASYM2 && format <= ASYM8;
}

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* A number whose order among others is that of the values: a negative value's other bits are turned round. */
INLINE int32_t key_of(float x)
{
    int32_t bits = (int32_t)bits_of(x);
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

INLINE uint32_t bits_of_key(int32_t key)
{
    return (uint32_t)(key ^ (key >> 31 & 0x7FFFFFFF));
}

/* x to the nearest integer, ties to even, for magnitudes below 2**22: the sum's lowest bit counts ones. */
INLINE int32_t rounded(float x)
{
    return (int32_t)(bits_of(x + 0x1.8p23f) - 0x4B400000);
}

/* fp16 bits of a value whose magnitude is at most 65504. */
INLINE uint16_t to_half(float x)
{
    uint32_t bits = bits_of(x), size = bits & 0x7FFFFFFF;
    uint32_t normal = (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13;
    uint32_t subnormal = bits_of(float_of(size) + 0.5f) - 0x3F000000; /* the sum's lowest bit counts 2**-24 */
    return (uint16_t)((size < 0x38800000 ? subnormal : normal) | (bits >> 16 & 0x8000));
}

INLINE float from_half(uint16_t half)
{
    uint32_t size = bits_of(float_of((uint32_t)(half & 0x7FFF) << 13) * 0x1p112f);
    size |= (half & 0x7C00) == 0x7C00 ? 0x7F800000 : 0; /* infinite or NaN */
    return float_of(size | (uint32_t)(half & 0x8000) << 16);
}

/* The same byte 8 times. */
INLINE uint64_t each(unsigned octet)
{
    return octet * 0x0101010101010101u;
}

INLINE uint64_t load(const uint8_t *from, int size)
{
    uint64_t word = 0;
    if (size == 8)
        memcpy(&word, from, 8);
    else if (size == 4)
        memcpy(&word, from, 4);
    else if (size == 2)
        memcpy(&word, from, 2);
    else
        for (int i = 0; i < size; i++)
            word |= (uint64_t)from[i] << (8 * i);
    return word;
}

INLINE void store(uint8_t *to, uint64_t word, int size)
{
    if (size == 8)
        memcpy(to, &word, 8);
    else if (size == 4)
        memcpy(to, &word, 4);
    else if (size == 2)
        memcpy(to, &word, 2);
    else
        for (int i = 0; i < size; i++)
            to[i] = (uint8_t)(word >> (8 * i));
}

/* The factors of the channels after the n that begin at `factors`, which begin again in each row. */
INLINE const loose_f32 *next_factors(const loose_f32 *first, const loose_f32 *factors, int n, size_t width)
{
    return factors && factors + n < first + width ? factors + n : first;
}

/* Runs a statement with N a constant for the usual lengths of a block: loops without a rest. */
#define FOR_LENGTH(n, ...)                                                                                  \
    do {                                                                                                    \
        if ((n) == 64) {                                                                                    \
            enum { N = 64 };                                                                                \
            __VA_ARGS__;                                                                                    \
        } else if ((n) == 32) {                                                                             \
            enum { N = 32 };                                                                                \
            __VA_ARGS__;                                                                                    \
        } else if ((n) == 128) {                                                                            \
            enum { N = 128 };                                                                               \
            __VA_ARGS__;                                                                                    \
        } else {                                                                                            \
            const int N = (n);                                                                              \
            __VA_ARGS__;                                                                                    \
        }                                                                                                   \
    } while (0)

#define CASE(bits, drop, ...)                                                                               \
    case bits: {                                                                                            \
        enum { BITS = bits, DROP = drop };                                                                  \
        __VA_ARGS__;                                                                                        \
        break;                                                                                              \
    }

/* Runs a statement with BITS a constant, and DROP one: the bits below a code of P23 in its byte. */
#define FOR_BITS(bits, ...)                                                                                 \
    switch (bits) {                                                                                         \
        CASE(2, 6, __VA_ARGS__)                                                                             \
        CASE(3, 5, __VA_ARGS__)                                                                             \
        CASE(4, 0, __VA_ARGS__)                                                                             \
        CASE(5, 3, __VA_ARGS__)                                                                             \
        CASE(6, 2, __VA_ARGS__)                                                                             \
        CASE(7, 1, __VA_ARGS__)                                                                             \
        CASE(8, 0, __VA_ARGS__)                                                                             \
    }

#define FN(name) name##_generic
#include "native_pack.h"
#include "native_encode.h"
#include "native_decode.h"
#undef FN

#ifdef HAS_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,f16c,prfchw")
#define FN(name) name##_avx2
#define NATIVE_AVX2
#include "native_pack.h"
#include "native_encode.h"
#include "native_decode.h"
#undef NATIVE_AVX2
#undef FN
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,prfchw,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")
#define FN(name) name##_avx512
#define NATIVE_AVX512
#include "native_pack.h"
#include "native_encode.h"
#include "native_decode.h"
#undef NATIVE_AVX512
#undef FN
#pragma GCC pop_options
#endif


struct level {
    const char *name;
    bool (*encode)(const struct encode_job *);
    void (*decode)(const struct decode_job *);
};

static const struct level levels[] = {
    {"generic", encode_generic, decode_generic},
#ifdef HAS_LEVELS
    {"avx2", encode_avx2, decode_avx2},
    {"avx512", encode_avx512, decode_avx512},
#endif
};

/* How many of the levels the processor can run; each needs what the ones before need. */
static int runnable(void)
{
    int count = 1;
#ifdef HAS_LEVELS
    unsigned a, b, c, d; /* older compilers do not know the name of F16C */
    if (__builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C)
        count = 2;
    if (count == 2 && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi"))
        count = 3;
#endif
    return count;
}

struct layout {
    int bits, trailer;
    size_t row_size;
};

/* Where the records of a row lie; false with an error when a number is out of range. */
static bool lay_out(int format, int block, Py_ssize_t width, int level, struct layout *layout)
{
    bool table = format == NF4 || format == FP4;
    if (format >= ASYM2 && format <= ASYM8)
        *layout = (struct layout){format - ASYM2 + 2, 4, 0};
    else if (table || format == F8)
        *layout = (struct layout){table ? 4 : 8, 2, 0};
    else if (format == F32 || format == F16 || format == BF16)
        *layout = (struct layout){format == F32 ? 32 : 16, 0, 0};
    else {
        PyErr_Format(PyExc_ValueError, "format is %d; expected the wire code of a format for floats", format);
        return false;
    }
    if (block != 32 && block != 64 && block != LONGEST) {
        PyErr_Format(PyExc_ValueError, "block is %d; expected 32, 64 or 128", block);
        return false;
    }
    if (width < 1 || width > PY_SSIZE_T_MAX / 64) {
        PyErr_Format(PyExc_ValueError, "width is %zd; expected the values of one row, at least 1", width);
        return false;
    }
    if (level < 0 || level >= runnable()) {
        PyErr_Format(PyExc_ValueError, "level is %d; expected 0 to %d", level, runnable() - 1);
        return false;
    }
    size_t bits = (size_t)layout->bits, trailer = (size_t)layout->trailer;
    size_t length = trailer ? (size_t)block : (size_t)width; /* the plain formats have no blocks */
    size_t full = (size_t)width / length, rest = (size_t)width % length;
    layout->row_size = full * (length * bits / 8 + trailer) + (rest ? (rest * bits + 7) / 8 + trailer : 0);
    return true;
}

/* The rows in a buffer; false with an error unless it holds whole rows, as many as `rows` says if not -1. */
static bool count_rows(const char *name, const Py_buffer *buffer, size_t row_size, Py_ssize_t *rows)
{
    Py_ssize_t size = (Py_ssize_t)row_size;
    if (buffer->len % size || (*rows >= 0 && buffer->len / size != *rows)) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes; expected rows of %zd", name, buffer->len, size);
        return false;
    }
    *rows = buffer->len / size;
    return true;
}

/* Checks a buffer that may be missing: it is there exactly when it is needed, and has the right size. */
static bool check_size(const char *name, const Py_buffer *buffer, Py_ssize_t size)
{
    Py_ssize_t seen = buffer->buf ? buffer->len : 0;
    if (seen != size)
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes; expected %zd", name, seen, size);
    return seen == size;
}

PyDoc_STRVAR(encode_doc, "encode(x, kind, out, format, block, width, factors, table, level) -> bool");

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer x = {0}, out = {0}, factors = {0}, table = {0};
    int kind, format, block, level;
    Py_ssize_t width, rows = -1;
    struct layout layout;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*iw*iinz*z*i:encode", &x, &kind, &out, &format, &block, &width, &factors,
                          &table, &level))
        return NULL;
    if (kind != KIND_F32 && kind != KIND_F16 && kind != KIND_BF16) {
        PyErr_Format(PyExc_ValueError, "kind is %d; expected 0, 1 or 2", kind);
        goto release;
    }
    if (!lay_out(format, block, width, level, &layout) ||
        !count_rows("x", &x, (size_t)width * (kind == KIND_F32 ? 4 : 2), &rows) ||
        !count_rows("out", &out, layout.row_size, &rows) ||
        !check_size("factors", &factors, factors.buf ? 4 * width : 0) ||
        !check_size("table", &table, format == NF4 || format == FP4 ? 256 : 0))
        goto release;
    struct encode_job job = {x.buf, factors.buf, table.buf, out.buf, (size_t)rows, (size_t)width,
                             layout.row_size, block, layout.bits, layout.trailer, (enum kind)kind,
                             (enum format)format};
    bool fine;
    Py_BEGIN_ALLOW_THREADS
    fenv_t caller; /* rounding to nearest, subnormal numbers kept, whatever the caller has set */
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    fine = levels[level].encode(&job);
    fesetenv(&caller);
    Py_END_ALLOW_THREADS
    result = PyBool_FromLong(fine);
release:
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&table);
    return result;
}

PyDoc_STRVAR(decode_doc, "decode(packed, out, format, block, width, factors, table, level) -> None");

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer packed = {0}, out = {0}, factors = {0}, table = {0};
    int format, block, level;
    Py_ssize_t width, rows = -1;
    struct layout layout;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*w*iinz*z*i:decode", &packed, &out, &format, &block, &width, &factors, &table,
                          &level))
        return NULL;
    Py_ssize_t entries = format == NF4 || format == FP4 ? 16 : format == F8 ? 256 : 0;
    if (!lay_out(format, block, width, level, &layout) ||
        !count_rows("out", &out, 4 * (size_t)width, &rows) ||
        !count_rows("packed", &packed, layout.row_size, &rows) ||
        !check_size("factors", &factors, factors.buf ? 4 * width : 0) ||
        !check_size("table", &table, 4 * entries))
        goto release;
    struct decode_job job = {packed.buf, factors.buf, table.buf, out.buf, (size_t)rows, (size_t)width,
                             layout.row_size, block, layout.bits, layout.trailer, (enum format)format, false};
#ifdef HAS_LEVELS
    job.stream = out.len >= STREAMED && (uintptr_t)out.buf % 64 == 0 && width % 16 == 0;
#endif
    Py_BEGIN_ALLOW_THREADS
    fenv_t caller;
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    levels[level].decode(&job);
#ifdef HAS_LEVELS
    _mm_sfence(); /* before another thread is told */
#endif
    fesetenv(&caller);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
release:
    PyBuffer_Release(&packed);
    PyBuffer_Release(&out);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&table);
    return result;
}

static int add_levels(PyObject *module)
{
    int count = runnable();
    PyObject *names = PyTuple_New(count);
    if (names == NULL)
        return -1;
    for (int i = 0; i < count; i++) {
        PyObject *name = PyUnicode_FromString(levels[i].name);
        if (name == NULL || PyTuple_SetItem(names, i, name) < 0) {
            Py_DECREF(names);
            return -1;
        }
    }
    int result = PyModule_AddObjectRef(module, "LEVELS", names);
    Py_DECREF(names);
    return result;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS, encode_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_levels},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
