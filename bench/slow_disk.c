/* A slow disk for one process: LD_PRELOAD it, and what is written below one file system takes as
 * long as a disk of SLOW_DISK_RATE bytes a second would. All threads share its rate. Memory maps
 * are not slowed down.
 *
 * SLOW_DISK_FOLDER: a folder on the file system that is slow.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double rate, busy_until; /* bytes a second; seconds of the monotonic clock */
static dev_t device;
static ssize_t (*plain_write)(int, const void *, size_t);
static ssize_t (*plain_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*plain_writev)(int, const struct iovec *, int);
static ssize_t (*plain_pwritev)(int, const struct iovec *, int, off_t);
static ssize_t (*plain_pwritev2)(int, const struct iovec *, int, off_t, int);
static size_t (*plain_fwrite)(const void *, size_t, size_t, FILE *);

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("SLOW_DISK_FOLDER"), *speed = getenv("SLOW_DISK_RATE");
    struct stat about;
    plain_write = dlsym(RTLD_NEXT, "write");
    plain_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    plain_writev = dlsym(RTLD_NEXT, "writev");
    plain_pwritev = dlsym(RTLD_NEXT, "pwritev64");
    plain_pwritev2 = dlsym(RTLD_NEXT, "pwritev64v2");
    plain_fwrite = dlsym(RTLD_NEXT, "fwrite");
    if (folder && speed && stat(folder, &about) == 0) {
        device = about.st_dev;
        rate = atof(speed);
    }
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + at.tv_nsec * 1e-9;
}

/* Take as long as the disk would, after all that others have given it before. */
static ssize_t slowly(int file, ssize_t written) {
    struct stat about;
    double until;
    if (written <= 0 || rate <= 0 || fstat(file, &about) != 0) return written;
    if (!S_ISREG(about.st_mode) || about.st_dev != device) return written;
    pthread_mutex_lock(&lock);
    if (busy_until < now()) busy_until = now();
    until = busy_until += (double)written / rate;
    pthread_mutex_unlock(&lock);
    for (double left; (left = until - now()) > 0;) {
        struct timespec pause = {(time_t)left, (long)((left - (time_t)left) * 1e9)};
        nanosleep(&pause, NULL);
    }
    return written;
}

/* stdio's own calls of write() stay inside the C library: they are met here */
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    size_t written = plain_fwrite(data, size, count, file);
    slowly(fileno(file), (ssize_t)(size * written));
    return written;
}
ssize_t write(int file, const void *data, size_t size) {
    return slowly(file, plain_write(file, data, size));
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    return slowly(file, plain_pwrite(file, data, size, at));
}
ssize_t pwrite64(int file, const void *data, size_t size, off_t at) {
    return slowly(file, plain_pwrite(file, data, size, at));
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    return slowly(file, plain_writev(file, parts, count));
}
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) {
    return slowly(file, plain_pwritev(file, parts, count, at));
}
ssize_t pwritev64(int file, const struct iovec *parts, int count, off_t at) {
    return slowly(file, plain_pwritev(file, parts, count, at));
}
ssize_t pwritev2(int file, const struct iovec *parts, int count, off_t at, int flags) {
    return slowly(file, plain_pwritev2(file, parts, count, at, flags));
}
ssize_t pwritev64v2(int file, const struct iovec *parts, int count, off_t at, int flags) {
    return slowly(file, plain_pwritev2(file, parts, count, at, flags));
}
