package Bench::Simulated;

# bench/nodes.rs, which is many nodes without nginx, as a process that takes orders.

use strict;
use warnings;

use JSON::PP ();
use POSIX ();
use RegistryTest::Process qw(fork_child spawn slurp temp_dir wait_until alive exit_status stop_process);

my ($HERE) = __FILE__ =~ m{^(.*)/lib/Bench/Simulated\.pm$};

sub missing {
    return (grep { -x "$_/cargo" } split /:/, $ENV{PATH} || '') ? '' : 'cargo is not installed (https://rustup.rs)';
}

my $program;

sub _build {
    return $program if $program;
    my $top    = "$HERE/..";
    my $log    = temp_dir() . '/cargo';
    my $target = $ENV{CARGO_TARGET_DIR} || "$top/target";
    # Not by system(), under which a signal would leave it running.
    my $pid = spawn([ 'cargo', 'build', '--locked', '--release', '--no-default-features', '--manifest-path',
        "$top/Cargo.toml", '--target-dir', $target, '--example', 'nodes' ], stdout => $log, stderr => $log);
    wait_until(sub { !alive($pid) }, 3600, 0.2) or die "cargo build does not end\n";
    die "cargo build failed:\n" . slurp($log) if exit_status($pid);
    return $program = "$target/release/examples/nodes";
}

# So many nodes, on the Redis at this URL, that register so many servers at this port. Returns when
# all of them know all servers, and seconds says how long that took.
sub new {
    my ($class, $url, $nodes, $servers, $port, $interval) = @_;
    my @command = (_build(), $url, $nodes, $servers, $port, $interval);
    my $self = bless { log => temp_dir() . '/log' }, $class;
    pipe my $orders, $self->{orders} or die "pipe: $!\n";
    pipe $self->{answers}, my $answers or die "pipe: $!\n";
    $self->{orders}->autoflush(1);
    $self->{pid} = fork_child(sub {
        POSIX::dup2(fileno $orders, 0);
        POSIX::dup2(fileno $answers, 1);
        open STDERR, '>', $self->{log};
        # They stand for other machines: here they run when nginx does not want to.
        setpriority 0, 0, 19;
        exec { $command[0] } @command or die "cannot execute $command[0]: $!\n";
    }, keep => [ $orders, $answers ]);
    close $orders;
    close $answers;
    $self->{seconds} = $self->_answer->{seconds};
    return $self;
}

sub _answer {
    my ($self) = @_;
    my $bits = '';
    vec($bits, fileno $self->{answers}, 1) = 1;
    select $bits, undef, undef, 300 or die "the simulated nodes do not answer: " . slurp($self->{log}) . "\n";
    my $line = readline $self->{answers};
    die "the simulated nodes have ended: " . slurp($self->{log}) . "\n" unless defined $line;
    return JSON::PP->new->decode($line);
}

sub pid { return $_[0]{pid} }

# The orders are in bench/nodes.rs.
sub order {
    my ($self, @words) = @_;
    print { $self->{orders} } "@words\n";
    return $self->_answer;
}

sub stop {
    my ($self) = @_;
    stop_process($self->{pid}, KILL => 2);
    return;
}

1;
