package RegistryTest::Fault;

# Nodes with the fault-injection build of the module: a process dies at a marked point of
# its sources (src/shm/fault.rs) when a test has ordered it to.
#
#     my $node = RegistryTest::Fault->node(workers => 3, http => '...', server => '...');
#     $node->arm('journal.half');            # whoever passes it next dies there
#     $node->arm('add.live:2:worker,repair.server:1:worker');   # a second death after it
#     $node->arm("lock.taken:1:$pid");
#     is($node->waiting, 0, 'it died');
#     is_deeply($node->checked->{problems}, [], 'the zone is whole');
#
# A node of these counts the deaths that it ordered and allows for their lines in the log.

use strict;
use warnings;

use Cwd ();
use File::Basename ();
use RegistryTest::Client ();
use RegistryTest::Node;
use RegistryTest::Process qw(find_binary wait_until time_scale alive);
use Test::More ();

our @ISA = ('RegistryTest::Node');

# Who dies where: each point belongs to one test file, t/fault-GROUP.t, and a file that does
# not come by all of its own fails. What is not named here is a change that any worker makes.
my @GROUPS = (
    [ full   => qr/^(?:recount\.|restate\.|(?:book|unbook|leave)\.outside$|heap\.compacting$)/ ],
    [ life   => qr/^(?:join|leave|reap|elect)\./ ],
    [ names  => qr/^names\./ ],
    [ health => qr/^checks\.(?:claimed|noted)$/ ],
    [ share  => qr/^(?:queue|depart)\./ ],
    [ master => qr/^(?:cycle|succeed|configure|adopt|checks)\./ ],
    [ repair => qr/^repair\./ ],
    [ worker => qr// ],
);

my $module;

# The module's path: given by whoever runs the tests, or built here.
sub module {
    return $module if $module;
    $module = $ENV{TEST_NGINX_FAULT_MODULE};
    if (!$module) {
        my $root = Cwd::abs_path(File::Basename::dirname(__FILE__) . '/../../..');
        my $binary = find_binary();
        my $said = `'$root/scripts/build' --nginx '$binary' --cfg fault 2>&1`;
        ($module) = $said =~ /^(\S+\.so)\s*\z/m;
        die "TEST_NGINX_FAULT_MODULE is not set, and scripts/build --nginx $binary --cfg fault says:\n$said\n"
            if $? || !$module;
    }
    die "TEST_NGINX_FAULT_MODULE=$module is no file\n" unless -f $module;
    return $module;
}

sub node {
    my ($class, %opt) = @_;
    return $class->new(modules => [ module() ], killed => 0, %opt);
}

# GET of an endpoint of a registry's location (/upstream/): the data of the reply.
sub _ask {
    my ($self, $endpoint, $location) = @_;
    my $response = $self->get(($location || '/upstream/') . $endpoint);
    die "$endpoint: $response->{status} " . ($response->{error} || $response->{body}) . "\n" unless $response->{json}{data};
    return $response->{json}{data};
}

# Orders deaths (POINT:NTH:WHO, with commas between); returns how many are ordered.
sub arm {
    my ($self, $orders, %opt) = @_;
    return $self->{ordered} = $self->_ask("fault?at=$orders", $opt{location})->{waiting};
}

# How many of them are still to come.
sub waiting { my ($self, $location) = @_; return $self->_ask('fault', $location)->{waiting} }

# Waits until all have come, and counts them.
sub died {
    my ($self, $location) = @_;
    # Who is asked may be the next to die.
    wait_until(sub { !(eval { $self->waiting($location) } // 1) }) or return;
    $self->{killed} += $self->{ordered};
    $self->{ordered} = 0;
    return wait_until(sub { $self->workers == $self->_worker_count });
}

# { name => [times passed by masters, by workers] }
sub points {
    my ($self, $location) = @_;
    return { map { $_->{name} => [ @$_{qw(master worker)} ] } @{ $self->_ask('fault', $location)->{points} } };
}

# The names of those that belong to a group.
sub points_of {
    my ($self, $wanted) = @_;
    return grep {
        my $point = $_;
        my ($group) = grep { $point =~ $_->[1] } @GROUPS;
        $group->[0] eq $wanted;
    } sort keys %{ $self->points };
}

# What the zone says of itself: problems, connections, ledger, workers, servers ...
sub checked { my ($self, $location) = @_; return $self->_ask('check', $location) }

# A test: the zone is whole and carries so many requests.
sub is_whole {
    my ($self, $connections, $name, $location) = @_;
    my $data = $self->checked($location);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return Test::More::is_deeply([ $data->{problems}, $data->{connections} ], [ [], $connections ], $name);
}

# Nothing is left of any request, nor of any worker that is not there.
sub is_idle {
    my ($self, $name, $location) = @_;
    my $data;
    wait_until(sub { ($data = $self->checked($location))->{connections} == 0 && $data->{workers} == $self->_worker_count });
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return Test::More::is_deeply([ @$data{qw(problems connections ledger outside workers)} ],
        [ [], 0, 0, 0, $self->_worker_count ], $name);
}

sub kill_worker {
    my ($self, $pid, $signal, @opt) = @_;
    $self->{killed}++;
    return $self->SUPER::kill_worker($pid, $signal, @opt);
}

sub log_is_clean {
    my ($self, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @allow = [ qr/\[alert\] .*worker process \d+ exited on signal 9/, $self->{killed} ];
    return $self->SUPER::log_is_clean(%opt, allow => [ @allow, @{ $opt{allow} || [] } ]);
}

# A connection to a certain worker.
sub client_of {
    my ($self, $pid) = @_;
    for (1 .. 300) {
        my $client = $self->client;
        my $response = $client->get('/');
        return $client if ($response->{headers}{'x-worker'} || 0) == $pid;
    }
    die "no connection came to worker $pid\n";
}

# Requests whose answers begin at once (with X-Worker) and last: { pid => [clients] }, in at
# least $workers processes.
sub held {
    my ($self, $count, $workers, $seconds) = @_;
    my %by;
    for my $i (1 .. 200) {
        my $client = $self->client;
        $client->send("GET /?size=10000&drip=" . ($seconds || 120) . " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        my $head = $client->read_some;
        my ($worker) = $head =~ /^X-Worker: (\d+)/m or die "no worker in: $head";
        $self->{read}{$client} = length $head;
        push @{ $by{$worker} }, $client;
        last if $i >= $count && keys %by >= ($workers || 1);
    }
    return \%by;
}

# Reads the rest of such an answer: whether it came whole.
sub ends_well {
    my ($self, $client) = @_;
    return eval { $self->{read}{$client} + length $client->read_all } > 10_000;
}

1;
