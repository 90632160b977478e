/* CRC32C at the speed of the second-level cache, and of joined bytes: the optional extension of
 * mobillm/protocol/checksum.py, which is its one caller.
 *
 * A register of 128 bits that stands for the bytes read so far is moved on by carry-less multiplication with
 * powers of x modulo the polynomial, sixteen registers at a time (V. Gopal and others, "Fast CRC Computation
 * for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009). Bytes that are left go through the
 * processor's own CRC32 instruction. The constants are computed when the module is loaded.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_FOLDING
#include <immintrin.h>
#endif

/* A polynomial of degree below 32, reflected: bit 31 is the coefficient of 1. */
enum { POLYNOMIAL = 0x82F63B78, DEGREES = 3 + 63 };
#define ONE 0x80000000u

/* The processor reads ahead by itself, but not beyond a page: bytes from memory come a sixth faster with this. */
enum { STRIDE = 256, LINE = 64, AHEAD = 8192 };

/* From here on other threads may run: a megabyte takes about 20 us, and to get the lock back may take longer. */
enum { LONG = 1 << 20 };

static uint32_t squares[DEGREES]; /* x^(2^k) */

static uint32_t times(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        product ^= b & -(a >> bit & 1);
        b = b >> 1 ^ ((uint32_t)POLYNOMIAL & -(b & 1));
    }
    return product;
}

static uint32_t power(uint64_t exponent)
{
    uint32_t result = ONE;
    for (int k = 0; exponent; k++, exponent >>= 1)
        if (exponent & 1)
            result = times(result, squares[k]);
    return result;
}

#ifdef HAS_FOLDING
#define FOLDING __attribute__((target("sse4.2,avx512f,vpclmulqdq")))

static uint32_t further, nearer; /* what moves a register's first and second half over STRIDE bytes */

static bool can_fold(void)
{
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("vpclmulqdq");
}

FOLDING static uint64_t read_bytes(uint64_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    for (; size; data++, size--)
        crc = _mm_crc32_u8((uint32_t)crc, *data);
    return crc;
}

FOLDING static inline __m512i fold(__m512i registers, __m512i factors, const uint8_t *data)
{
    __m512i first = _mm512_clmulepi64_epi128(registers, factors, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(registers, factors, 0x11);
    return _mm512_ternarylogic_epi64(first, second, _mm512_loadu_si512(data), 0x96); /* exclusive or */
}

FOLDING static uint32_t checksum(uint32_t value, const uint8_t *data, size_t size)
{
    uint64_t crc = ~value;
    if (size >= 4 * STRIDE) {
        size_t odd = -(uintptr_t)data % LINE; /* loads across two lines take twice as long */
        crc = read_bytes(crc, data, odd);
        data += odd, size -= odd;

        __m512i factors = _mm512_set4_epi64(nearer, further, nearer, further);
        __m512i a = _mm512_loadu_si512(data), b = _mm512_loadu_si512(data + LINE);
        __m512i c = _mm512_loadu_si512(data + 2 * LINE), d = _mm512_loadu_si512(data + 3 * LINE);
        a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi64_si128((long long)crc)));
        for (data += STRIDE, size -= STRIDE; size >= STRIDE; data += STRIDE, size -= STRIDE) {
            for (int line = 0; line < STRIDE; line += LINE)
                _mm_prefetch((const char *)data + AHEAD + line, _MM_HINT_T0);
            a = fold(a, factors, data);
            b = fold(b, factors, data + LINE);
            c = fold(c, factors, data + 2 * LINE);
            d = fold(d, factors, data + 3 * LINE);
        }
        uint8_t rest[STRIDE];
        _mm512_storeu_si512(rest, a);
        _mm512_storeu_si512(rest + LINE, b);
        _mm512_storeu_si512(rest + 2 * LINE, c);
        _mm512_storeu_si512(rest + 3 * LINE, d);
        crc = read_bytes(0, rest, STRIDE);
    }
    return ~(uint32_t)read_bytes(crc, data, size);
}
#else
static bool can_fold(void)
{
    return false;
}

static uint32_t checksum(uint32_t value, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    return value; /* never called */
}
#endif

/* An argument that must be a number of 32 bits. */
static bool as_register(PyObject *object, uint32_t *value)
{
    unsigned long number = PyLong_AsUnsignedLong(object);
    if (PyErr_Occurred())
        return false;
    if (number > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a checksum has 32 bits");
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

static PyObject *crc32c(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint32_t value = 0;
    Py_buffer view;
    (void)module;
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "crc32c takes bytes and perhaps a checksum");
        return NULL;
    }
    if (!can_fold()) {
        PyErr_SetString(PyExc_NotImplementedError, "this processor lacks the instructions");
        return NULL;
    }
    if ((count == 2 && !as_register(args[1], &value)) || PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (view.len < LONG) {
        value = checksum(value, view.buf, (size_t)view.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        value = checksum(value, view.buf, (size_t)view.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(value);
}

static PyObject *combine(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint32_t first, second;
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "combine takes two checksums and a number of bytes");
        return NULL;
    }
    if (!as_register(args[0], &first) || !as_register(args[1], &second))
        return NULL;
    Py_ssize_t size = PyLong_AsSsize_t(args[2]);
    if (size < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a negative number of bytes");
        return NULL;
    }
    for (int k = 3; size; k++, size >>= 1)
        if (size & 1)
            first = times(first, squares[k]);
    return PyLong_FromUnsignedLong(first ^ second);
}

static int prepare(PyObject *module)
{
    squares[0] = ONE >> 1;
    for (int k = 1; k < DEGREES; k++)
        squares[k] = times(squares[k - 1], squares[k - 1]);
#ifdef HAS_FOLDING
    /* A product of two reflected numbers is one bit short, and the constants stand 32 bits too low. */
    further = power(8 * STRIDE + 64 - 1 - 32);
    nearer = power(8 * STRIDE - 1 - 32);
#else
    (void)power;
#endif
    return PyModule_AddObjectRef(module, "FOLDS", can_fold() ? Py_True : Py_False);
}

static PyMethodDef methods[] = {
    {"crc32c", (PyCFunction)(void (*)(void))crc32c, METH_FASTCALL,
     "crc32c(data, value=0, /)\n--\n\nReturn the CRC32C of the bytes, or go on from that of the bytes before them."},
    {"combine", (PyCFunction)(void (*)(void))combine, METH_FASTCALL,
     "combine(first, second, size, /)\n--\n\nReturn the checksum of two strings joined, the second of `size` bytes."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_crc32c", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__crc32c(void)
{
    return PyModuleDef_Init(&definition);
}
