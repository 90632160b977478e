/* Memory for received payloads: the optional extension of mobillm/protocol/memory.py, which is its one caller.
 *
 * A bytearray is filled with zeros first, and what the C library gives back to the system when it is freed has
 * to be mapped again, page by page: on a fast link both take longer than Python does. So blocks that nobody
 * holds any more are kept, up to a bound, the last one first, since it may still be in the cache.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <string.h>

enum { MOST = 512 };                          /* blocks kept */
static const Py_ssize_t BOUND = 32 << 20;     /* bytes kept */
static const Py_ssize_t TOLERANCE = 16;       /* a block may be larger than asked for by this part of it */

/* A block of memory; its buffer is writable and lives as long as anybody looks at it. */
struct block {
    PyObject ob_base;
    char *data;
    Py_ssize_t size, capacity;
};

/* All of this is used under the interpreter's lock only. */
static struct kept {
    char *data;
    Py_ssize_t capacity;
} kept[MOST];
static int count;
static Py_ssize_t total;

static void forget(int index)
{
    total -= kept[index].capacity;
    count--;
    memmove(kept + index, kept + index + 1, (size_t)(count - index) * sizeof *kept);
}

static void keep(char *data, Py_ssize_t capacity)
{
    if (capacity > BOUND) {
        PyMem_Free(data);
        return;
    }
    while (count == MOST || total + capacity > BOUND) { /* the oldest goes */
        PyMem_Free(kept[0].data);
        forget(0);
    }
    kept[count++] = (struct kept){data, capacity};
    total += capacity;
}

/* Memory of `size` bytes that was kept, or NULL. */
static char *reuse(Py_ssize_t size, Py_ssize_t *capacity)
{
    for (int index = count - 1; index >= 0; index--) {
        char *data = kept[index].data;
        *capacity = kept[index].capacity;
        if (*capacity >= size && *capacity - size <= size / TOLERANCE) {
            forget(index);
            return data;
        }
    }
    return NULL;
}

static PyObject *allocate(PyObject *module, PyObject *argument)
{
    Py_ssize_t size = PyLong_AsSsize_t(argument);
    if (size < 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a block has at least one byte");
        return NULL;
    }
    PyTypeObject *type = *(PyTypeObject **)PyModule_GetState(module);
    struct block *block = PyObject_New(struct block, type);
    if (block == NULL)
        return NULL;
    block->size = block->capacity = size;
    block->data = reuse(size, &block->capacity);
    if (block->data == NULL) {
        block->capacity = size;
        block->data = PyMem_Malloc((size_t)size);
    }
    if (block->data == NULL) {
        Py_DECREF(block);
        return PyErr_NoMemory();
    }
    return (PyObject *)block;
}

static void block_dealloc(PyObject *self)
{
    struct block *block = (struct block *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (block->data != NULL)
        keep(block->data, block->capacity);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    struct block *block = (struct block *)self;
    return PyBuffer_FillInfo(view, self, block->data, block->size, 0, flags);
}

static Py_ssize_t block_length(PyObject *self)
{
    return ((struct block *)self)->size;
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {Py_sq_length, block_length},
    {Py_tp_doc, "Writable memory of a fixed size; look at it through a memoryview."},
    {0, NULL},
};

static PyType_Spec block_spec = {
    "mobillm.protocol._memory.Block", sizeof(struct block), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots,
};

static PyObject *amount(PyObject *module, PyObject *arguments)
{
    (void)module, (void)arguments;
    return PyLong_FromSsize_t(total);
}

static int prepare(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&block_spec);
    *(PyObject **)PyModule_GetState(module) = type;
    return type == NULL ? -1 : PyModule_AddIntConstant(module, "BOUND", (long)BOUND);
}

static void release(void *module)
{
    Py_XDECREF(*(PyObject **)PyModule_GetState(module)); /* the type refers to nothing, so there is no cycle */
}

static PyMethodDef methods[] = {
    {"allocate", allocate, METH_O, "allocate(size, /)\n--\n\nReturn memory of `size` bytes that holds anything."},
    {"kept", amount, METH_NOARGS, "kept()\n--\n\nReturn the bytes that are kept and that nobody holds."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_memory", NULL, sizeof(PyObject *), methods, slots, NULL, NULL, release,
};

PyMODINIT_FUNC PyInit__memory(void)
{
    return PyModuleDef_Init(&definition);
}
