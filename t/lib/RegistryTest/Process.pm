package RegistryTest::Process;

# What every test needs from the system: ports that no other run takes, temporary
# directories, and processes that never outlive the test that started them.
# Linux only, as nginx's master and workers are found through /proc.

use strict;
use warnings;

use Exporter 'import';
use File::Path ();
use File::Temp ();
use POSIX qw(:sys_wait_h);
use Socket;
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(
    free_port temp_dir slurp spew
    spawn fork_child alive reap exit_status end_process stop_process kill_group children
    track forget on_exit fail_at_exit wait_until time_scale bad_log_lines
    find_program find_binary binary_info valgrind_command valgrind_reports
);

# Forked children inherit everything below; only the process that loaded this
# file may clean up.
my $OWNER = $$;

my %RESERVED;     # port => the socket that reserves it
my %TRACKED;      # leader of a process group => 1
my %STATUS;       # pid => wait status, once reaped
my @DIRS;
my @AT_EXIT;
my $EXIT_CODE = 0;

# Everything is slower under valgrind by about this much.
sub time_scale { return $ENV{TEST_NGINX_USE_VALGRIND} ? 10 : 1 }

# Calls the code until it returns something true, and returns that; returns
# nothing when the time is up. The pauses grow from 1 ms to the interval, so that
# what is quick is not slowed by the waiting.
sub wait_until {
    my ($code, $timeout, $interval) = @_;
    $timeout = 5 * time_scale() unless defined $timeout;
    $interval ||= 0.02;

    my $deadline = time + $timeout;
    my $pause = 0.001;
    while (1) {
        my $got = $code->();
        return $got if $got;
        return if time >= $deadline;
        sleep $pause;
        $pause = $pause * 2 < $interval ? $pause * 2 : $interval;
    }
}

sub slurp {
    my ($path, $offset) = @_;
    open my $in, '<', $path or return '';
    binmode $in;
    seek $in, $offset, 0 if $offset;
    local $/;
    my $text = <$in>;
    return defined $text ? $text : '';
}

sub spew {
    my ($path, $text) = @_;
    open my $out, '>', $path or die "cannot write $path: $!\n";
    binmode $out;
    print {$out} $text;
    close $out or die "cannot write $path: $!\n";
    return $path;
}

# Ports

# Below the range from which the kernel takes ports for outgoing connections:
# nothing but another listener can come in between.
sub _port_range {
    my ($low, $high) = (11000, 31999);
    my ($ephemeral) = slurp('/proc/sys/net/ipv4/ip_local_port_range') =~ /^(\d+)/;
    $high = $ephemeral - 1 if $ephemeral && $ephemeral > $low + 1000 && $ephemeral <= $high;
    return ($low, $high);
}

# A name in the abstract unix namespace can be bound once: that is a lock shared
# by all runs on the machine, atomic, and gone with the process.
sub _reserve {
    my ($port) = @_;
    socket my $lock, PF_UNIX, SOCK_DGRAM, 0 or return;
    bind $lock, pack_sockaddr_un("\0ngx-test-port-$port") or return;
    return $lock;
}

sub _bindable {
    my ($port) = @_;
    for my $type (SOCK_STREAM, SOCK_DGRAM) {
        socket my $probe, PF_INET, $type, 0 or return;
        setsockopt $probe, SOL_SOCKET, SO_REUSEADDR, 1 if $type == SOCK_STREAM;
        bind $probe, pack_sockaddr_in($port, INADDR_ANY) or return;
    }
    # Where the machine has no IPv6 there is nothing to collide with.
    socket my $probe6, PF_INET6, SOCK_STREAM, 0 or return 1;
    setsockopt $probe6, SOL_SOCKET, SO_REUSEADDR, 1;
    setsockopt $probe6, Socket::IPPROTO_IPV6(), Socket::IPV6_V6ONLY(), 1;
    return 1 if bind $probe6, Socket::pack_sockaddr_in6($port, Socket::IN6ADDR_ANY());
    return $!{EADDRNOTAVAIL};
}

# A port that is free for TCP and UDP and that stays this test's until it ends.
sub free_port {
    my ($low, $high) = _port_range();
    for (1 .. 2000) {
        my $port = $low + int rand($high - $low);
        next if $RESERVED{$port};
        my $lock = _reserve($port) or next;
        next unless _bindable($port);
        $RESERVED{$port} = $lock;
        return $port;
    }
    die "no free port between $low and $high\n";
}

# Directories

# Removed at the end of the test, unless TEST_NGINX_NO_CLEAN asks to keep it.
sub temp_dir {
    my $dir = File::Temp::tempdir('ngx-test-XXXXXX', TMPDIR => 1);
    chmod 0755, $dir;    # workers may run as another user
    push @DIRS, $dir;
    return $dir;
}

# Processes

my %PRCTL = (
    x86_64 => 157, aarch64 => 167, riscv64 => 167, i686 => 172, armv7l => 172,
    ppc64le => 171, s390x => 172,
);

sub _prctl {
    my ($operation, $argument) = @_;
    my $number = $PRCTL{ (POSIX::uname())[4] } or return;
    return syscall($number, $operation, $argument, 0, 0, 0);
}

# What is orphaned below us (a daemon, the new master of a binary upgrade) becomes
# our child, so that it can be waited for and never stays behind as a zombie.
my $PR_SET_CHILD_SUBREAPER = 36;
_prctl($PR_SET_CHILD_SUBREAPER, 1);

# Even a test that is killed outright takes its processes with it.
my $PR_SET_PDEATHSIG = 1;

sub _enter_child {
    my ($parent, $death_signal) = @_;
    setpgrp;    # Ctrl-C is for the test, which then stops its processes in order
    _prctl($PR_SET_PDEATHSIG, $death_signal);
    POSIX::_exit(1) if getppid != $parent;
    $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP QUIT PIPE CHLD ALRM __DIE__ __WARN__);
}

# Starts a program in a process group of its own and returns its pid.
# stdout, stderr: files to append to; env: variables to set (undef: unset).
sub spawn {
    my ($command, %opt) = @_;
    my $parent = $$;
    defined(my $pid = fork) or die "fork: $!\n";
    if (!$pid) {
        _enter_child($parent, POSIX::SIGTERM());
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', $opt{stdout} || '/dev/null';
        open STDERR, '>>', $opt{stderr} if $opt{stderr};
        for my $name (keys %{ $opt{env} || {} }) {
            if (defined $opt{env}{$name}) { $ENV{$name} = $opt{env}{$name} }
            else                          { delete $ENV{$name} }
        }
        { no warnings 'exec'; exec { $command->[0] } @$command }
        print STDERR "cannot execute $command->[0]: $!\n";
        POSIX::_exit(127);
    }
    track($pid);
    return $pid;
}

# Runs the code in a child and returns its pid. The child lets go of every descriptor
# besides those to keep: a copy of a client's socket left open in it would hide
# from nginx that the client has gone.
sub fork_child {
    my ($code, %opt) = @_;
    my %keep = map { $_ => 1 } 0 .. 2, map { fileno $_ } @{ $opt{keep} || [] };
    my $parent = $$;
    defined(my $pid = fork) or die "fork: $!\n";
    if (!$pid) {
        my $ok = eval {
            _enter_child($parent, POSIX::SIGKILL());
            opendir my $dir, '/proc/self/fd' or die "/proc/self/fd: $!\n";
            my @open = grep { /^\d+$/ && !$keep{$_} } readdir $dir;
            closedir $dir;
            # Not closed but pointed elsewhere: Perl counts its handles by descriptor, and
            # would not really close a new one that got the number of an old.
            my $null = POSIX::open('/dev/null', POSIX::O_RDWR()) or die "/dev/null: $!\n";
            POSIX::dup2($null, $_) for grep { $_ != $null } @open;
            # prove reads the test's output to its end: a child must not hold it.
            open STDIN, '<', '/dev/null';
            open STDOUT, '>', '/dev/null';
            $code->();
            1;
        };
        print STDERR "child $$: $@" unless $ok;
        POSIX::_exit($ok ? 0 : 1);    # no END block of the test may run here
    }
    track($pid);
    return $pid;
}

# Collects the process if it is a child of ours that has ended.
sub reap {
    my ($pid) = @_;
    local ($?, $!);
    $STATUS{$pid} = $? if waitpid($pid, WNOHANG) == $pid;
    return exists $STATUS{$pid};
}

# The wait status of a process that was seen to end, as in $?.
sub exit_status { return $STATUS{ $_[0] } }

# Whether the process runs; a zombie does not.
sub alive {
    my ($pid) = @_;
    return 0 if reap($pid);
    my ($state) = slurp("/proc/$pid/stat") =~ /.*\)\s+(\S)/s;
    return 1 if defined $state && $state !~ /[ZXx]/;
    # It has ended since: who is told that must find the status.
    reap($pid);
    return 0;
}

# The children of a process, oldest first.
sub children {
    my ($pid) = @_;
    my $list = slurp("/proc/$pid/task/$pid/children");
    return split ' ', $list if length $list;
    return if -e "/proc/$pid/task/$pid/children";
    # A kernel without that file: ask every process for its parent.
    opendir my $proc, '/proc' or return;
    return sort { $a <=> $b } grep {
        /^\d+$/ && slurp("/proc/$_/stat") =~ /.*\)\s+\S\s+(\d+)/s && $1 == $pid
    } readdir $proc;
}

# SIGKILL to a whole process group, and waits until nothing of it is left.
sub kill_group {
    my ($group) = @_;
    kill 'KILL', -$group;
    my $gone = wait_until(sub {
        local ($?, $!);
        1 while waitpid(-$group, WNOHANG) > 0 and $STATUS{$group} = $?;
        return !kill 0, -$group;
    }, 5);
    delete $TRACKED{$group};
    return $gone;
}

# Sends the signal and waits until the process is gone; false when it was not in time.
sub end_process {
    my ($pid, $signal, $timeout) = @_;
    kill $signal, $pid;
    kill 'CONT', $pid;    # it may have been paused
    # With master_process off nginx forgets a signal that comes during a reload until
    # its next event: say it again.
    my $again = time + 0.3;
    return wait_until(sub {
        return 1 if !alive($pid);
        if (time >= $again) { kill $signal, $pid; $again += 0.3 }
        return;
    }, $timeout);
}

# Sends the signals in turn, each with its time to take effect, and SIGKILL to the
# whole group last. Returns the signal that ended the process.
sub stop_process {
    my ($pid, @steps) = @_;
    while (my ($signal, $timeout) = splice @steps, 0, 2) {
        last if !alive($pid);
        next unless end_process($pid, $signal, $timeout * time_scale());
        kill_group($pid) if kill 0, -$pid;    # what it left behind
        forget($pid);
        return $signal;
    }
    my $was_alive = alive($pid);
    kill_group($pid);
    return $was_alive ? 'KILL' : '';
}

# A process group to kill at the end of the test, and one that is known to be gone.
sub track  { $TRACKED{ $_[0] } = 1; delete $STATUS{ $_[0] }; return }
sub forget { delete $TRACKED{ $_[0] }; return }

# Code to run at the end of the test, before its processes are stopped; the last
# one registered runs first.
sub on_exit { unshift @AT_EXIT, shift }

# Makes the test fail although its plan is complete.
sub fail_at_exit { $EXIT_CODE = 1 }

sub _clean_up {
    local ($@, $!);
    while (my $code = shift @AT_EXIT) {
        eval { $code->(); 1 } or print STDERR "# at exit: $@";
    }
    kill_group($_) for keys %TRACKED;
    if ($ENV{TEST_NGINX_NO_CLEAN}) {
        print STDERR "# kept: @DIRS\n" if @DIRS;
        @DIRS = ();
    }
    File::Path::remove_tree(@DIRS, { error => \my $ignored }) if @DIRS;
    @DIRS = ();
}

# exit, not die: an eval somewhere above must not swallow it.
for my $signal (qw(INT TERM HUP)) {
    next if $SIG{$signal} && $SIG{$signal} ne 'DEFAULT';
    $SIG{$signal} = sub { exit 1 if $$ == $OWNER; POSIX::_exit(1) };
}

# A peer that closes early is an error to report, not the end of the test.
$SIG{PIPE} = 'IGNORE';

END {
    if ($$ == $OWNER) {
        my $code = $?;
        _clean_up();
        $? = $code || $EXIT_CODE;
    }
}

# nginx, and what it may not say

# The binary under test; and any program, with its whole path where PATH knows it. Debian's
# nginx is in /usr/sbin, which a plain user's PATH lacks.
sub find_binary { return find_program($ENV{TEST_NGINX_BINARY} || 'nginx') }

sub find_program {
    my ($name) = @_;
    return $name if $name =~ m{/};
    my ($found) = grep { -x $_ && !-d _ } map { "$_/$name" } split(/:/, $ENV{PATH} || ''), '/usr/sbin';
    return $found || $name;
}

my %INFO;

# version ("1.22.1"), number (1.022001) and text (all of nginx -V) of a binary.
sub binary_info {
    my ($binary) = @_;
    return $INFO{$binary} if $INFO{$binary};
    my $text = '';
    if (open my $pipe, '-|', "'$binary' -V 2>&1") {
        local ($/, $?);
        $text = <$pipe>;
        close $pipe;
    }
    my ($major, $minor, $patch) = $text =~ m{^nginx version: \S+/(\d+)\.(\d+)\.(\d+)}m
        or die "cannot run $binary: $text\n";
    return $INFO{$binary} = {
        version => "$major.$minor.$patch",
        number  => sprintf('%d.%03d%03d', $major, $minor, $patch),
        text    => $text,
    };
}

my $BAD_LINE = qr{
      ^(?:[\d/]+\ [\d:]+|nginx:)\ \[(?:alert|emerg)\]
    | \bexited\ on\ signal\ \d
    | \bpanicked\ at\b
    | (?:Address|Leak|Memory|Thread|UndefinedBehavior)Sanitizer
    | :\d+:\d+:\ runtime\ error:
    | \bAssertion\ .*\ failed
}x;

# The lines of a log that no test may produce unnoticed: nginx's own alarms,
# crashes, panics and sanitizer reports.
sub bad_log_lines { return grep { $_ =~ $BAD_LINE } split /\n/, $_[0] }

# The words to put before nginx's own command line when TEST_NGINX_USE_VALGRIND is
# set; reports go to DIR/valgrind.PID. Its value may be options to use instead of
# the usual ones.
sub valgrind_command {
    my ($dir) = @_;
    my $use = $ENV{TEST_NGINX_USE_VALGRIND} or return;
    my @options = $use =~ /^\d+$/
        ? qw(--leak-check=full --show-possibly-lost=no --num-callers=60)
        : split ' ', $use;
    (my $suppress = __FILE__) =~ s{lib/RegistryTest/Process\.pm$}{valgrind.suppress};
    push @options, "--suppressions=$suppress" if -f $suppress;
    return ('valgrind', '-q', "--log-file=$dir/valgrind.%p", @options);
}

# What valgrind had to say, empty when all is well.
sub valgrind_reports {
    my ($dir) = @_;
    return join '', map { slurp($_) } sort glob "$dir/valgrind.*";
}

1;
