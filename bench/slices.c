/*
 * Preloaded into nginx to find the longest stretch of CPU time between two waits of the
 * event loop, and the longest for which any lock was held. What other programs do on
 * the machine meanwhile does not count: the clock is the thread's own.
 *
 * SLICES names a file of four 64-bit numbers that all processes share: the longest
 * slice and hold in nanoseconds, and how many of each there were. Zeroing the file begins
 * anew.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLICE, HOLD, SLICES, HOLDS, NUMBERS };
enum { MOST_HELD = 16 };

static _Atomic uint64_t nowhere[NUMBERS];
static _Atomic uint64_t *shared = nowhere;

static int (*real_epoll_wait)(int, struct epoll_event *, int, int);
static int (*real_lock)(pthread_mutex_t *);
static int (*real_trylock)(pthread_mutex_t *);
static int (*real_unlock)(pthread_mutex_t *);

static __thread uint64_t slice_began;
static __thread struct {
    pthread_mutex_t *mutex;
    uint64_t         since;
} held[MOST_HELD];

static uint64_t
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static void
note(int what, uint64_t ns)
{
    uint64_t longest = shared[what];

    while (ns > longest && !__atomic_compare_exchange_n((uint64_t *) &shared[what], &longest, ns,
               0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        /* longest is now what another process has noted */
    }
    shared[what + SLICES]++;
}

__attribute__((constructor)) static void
begin(void)
{
    const char *path = getenv("SLICES");
    int         fd;
    void       *map;

    real_epoll_wait = (int (*)(int, struct epoll_event *, int, int)) dlsym(RTLD_NEXT, "epoll_wait");
    real_lock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_lock");
    real_trylock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    real_unlock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_unlock");

    fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) {
        return;
    }
    map = mmap(NULL, sizeof nowhere, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) {
        shared = map;
    }
    close(fd);
}

int
epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
    int n, e;

    if (slice_began) {
        note(SLICE, now() - slice_began);
    }
    n = real_epoll_wait(epfd, events, max, timeout);
    e = errno;
    slice_began = now();
    errno = e;
    return n;
}

static int
locked(pthread_mutex_t *mutex, int rc)
{
    int i;

    if (rc == 0 || rc == EOWNERDEAD) {
        for (i = 0; i < MOST_HELD; i++) {
            if (!held[i].mutex) {
                held[i].mutex = mutex;
                held[i].since = now();
                break;
            }
        }
    }
    return rc;
}

int
pthread_mutex_lock(pthread_mutex_t *mutex)
{
    /* The C library's own start-up may lock before the constructor has run. */
    if (!real_lock) {
        real_lock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_lock");
    }
    return locked(mutex, real_lock(mutex));
}

int
pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    if (!real_trylock) {
        real_trylock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    }
    return locked(mutex, real_trylock(mutex));
}

int
pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int i;

    for (i = 0; i < MOST_HELD; i++) {
        if (held[i].mutex == mutex) {
            note(HOLD, now() - held[i].since);
            held[i].mutex = NULL;
            break;
        }
    }
    if (!real_unlock) {
        real_unlock = (int (*)(pthread_mutex_t *)) dlsym(RTLD_NEXT, "pthread_mutex_unlock");
    }
    return real_unlock(mutex);
}
