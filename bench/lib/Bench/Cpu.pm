package Bench::Cpu;

# CPU time, who runs on which processor, and whether anybody else ran meanwhile.

use strict;
use warnings;

use Exporter 'import';
use POSIX ();
use RegistryTest::Process qw(slurp);
use Time::HiRes ();

our @EXPORT_OK = qw(cpu_seconds processors can_pin pin pinned is_apart rest_of others);

my $TICK = 1 / POSIX::sysconf(POSIX::_SC_CLK_TCK());

# CPU time of all these processes so far, in seconds: (all, user, system). The sum comes from
# /proc/PID/task/TID/schedstat, to the nanosecond, where the kernel has that; the shares of user
# and system, the 14th and 15th field of /proc/PID/stat, are kept in ticks of 10 ms.
sub cpu_seconds {
    my ($all, $user, $system) = (0, 0, 0);
    for my $pid (@_) {
        # Counted from behind the name, which may hold anything.
        my ($rest) = slurp("/proc/$pid/stat") =~ /.*\) (.*)/s or die "process $pid has gone\n";
        my @fields = split ' ', $rest;
        $user   += $fields[11] * $TICK;
        $system += $fields[12] * $TICK;
        my @threads = map { (split ' ', slurp($_))[0] } glob "/proc/$pid/task/*/schedstat";
        # A thread that has ended is in the process's ticks only: none of these ends any.
        @threads = (($fields[11] + $fields[12]) * $TICK * 1e9) if !@threads || grep { !defined } @threads;
        $all += $_ / 1e9 for @threads;
    }
    return ($all, $user, $system);
}

# The processors that may be used, by number.
my @processors;

sub processors {
    @processors = map { /^(\d+)-(\d+)$/ ? $1 .. $2 : $_ }
        split /,/, (slurp('/proc/self/status') =~ /^Cpus_allowed_list:\s*(\S+)/m)[0] || '0'
        unless @processors;
    return @processors;
}

# Every worker has a processor of its own, and keeps it. When some are left, the load and the
# backend stay on those ("apart"): then nobody takes a worker's processor or its caches away, and
# the figures of one worker scatter less by half.

our $PIN = 1;

sub can_pin {
    return $PIN && processors() > 1 && grep { -x "$_/taskset" } split /:/, $ENV{PATH} || '';
}

sub is_apart { my ($workers) = @_; return can_pin() && $workers < processors() }

# The processors for the load and the backend, as taskset takes them.
sub rest_of {
    my ($workers) = @_;
    my @all = processors();
    return join ',', is_apart($workers) ? @all[ $workers .. $#all ] : @all;
}

# Binds processes, or threads, to processors as taskset takes them.
sub pin {
    my ($processors, @tasks) = @_;
    return unless can_pin();
    for my $task (@tasks) {
        system("taskset -cp $processors $task >/dev/null 2>&1") == 0 or die "taskset failed for process $task\n";
    }
    return;
}

# The words to put before a command.
sub pinned {
    my ($processors) = @_;
    return can_pin() && defined $processors ? ('taskset', '-c', $processors) : ();
}

# How much CPU time, in processors, programs other than these processes and us and our
# children took since the last call, and the hypervisor (steal).
my %before;

sub others {
    my (@pids) = @_;
    my ($line) = slurp('/proc/stat') =~ /^cpu +(.*)/m;
    my ($user, $nice, $system, undef, undef, $irq, $softirq, $steal) = split ' ', $line;
    my %now = (
        time  => Time::HiRes::time(),
        busy  => ($user + $nice + $system + $irq + $softirq + $steal) * $TICK,
        steal => $steal * $TICK,
        ours  => 0,
    );
    $now{ours} += $_ for (cpu_seconds(@pids))[0], (times)[ 0 .. 3 ];
    my $elapsed = $now{time} - ($before{time} || 0);
    my $others  = %before && $elapsed > 0
        ? (($now{busy} - $before{busy}) - ($now{ours} - $before{ours})) / $elapsed : 0;
    %before = %now;
    return $others > 0 ? $others : 0;
}

1;
