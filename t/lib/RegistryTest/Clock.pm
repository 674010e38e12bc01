package RegistryTest::Clock;

# A wall clock that is wrong, for one nginx or Redis: a library, compiled here, that stands before the
# C library and adds an offset to the time of day. The monotonic clock stays.
#
#     my $clock = RegistryTest::Clock->new(3600);
#     my $node = RegistryTest->nginx(env => $clock->env, ...);
#     $clock->set(-3600);    # also while it runs

use strict;
use warnings;

use RegistryTest::Process qw(temp_dir spew slurp spawn alive exit_status wait_until time_scale);

my $LIBRARY;

sub new {
    my ($class, $seconds) = @_;
    my $self = bless { file => temp_dir() . '/offset' }, $class;
    $LIBRARY ||= _compile();
    return $self->set($seconds || 0);
}

# The offset is one word that the process has mapped.
sub set {
    my ($self, $seconds) = @_;
    open my $out, -e $self->{file} ? '+<' : '>', $self->{file} or die "cannot write $self->{file}: $!\n";
    binmode $out;
    syswrite $out, pack 'q', $seconds;
    close $out;
    $self->{offset} = $seconds;
    return $self;
}

sub env { my ($self) = @_; return { LD_PRELOAD => $LIBRARY, TEST_CLOCK_OFFSET => $self->{file} } }

sub _compile {
    my $dir = temp_dir();
    spew("$dir/clock.c", <<'END');
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t nothing;
static volatile int64_t *offset = &nothing;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("TEST_CLOCK_OFFSET");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) {
        offset = page;
    }
    if (fd >= 0) {
        close(fd);
    }
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = syscall(SYS_clock_gettime, id, t);
    if (rc == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        t->tv_sec += *offset;
    }
    return rc;
}

int gettimeofday(struct timeval *t, void *zone)
{
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) {
        *t = now.tv_sec;
    }
    return now.tv_sec;
}
END
    my $pid = spawn([ 'cc', '-O1', '-shared', '-fPIC', '-o', "$dir/clock.so", "$dir/clock.c" ],
        stdout => "$dir/output", stderr => "$dir/output");
    wait_until(sub { !alive($pid) }, 30 * time_scale());
    my $status = exit_status($pid);
    die "the clock could not be compiled:\n" . slurp("$dir/output") unless defined $status && $status == 0;
    return "$dir/clock.so";
}

1;
