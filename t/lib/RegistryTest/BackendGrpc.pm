package RegistryTest::BackendGrpc;

# A gRPC server with the protocol of health checks (grpc.health.v1.Health): the one of Python's grpcio,
# whose HTTP/2 is that of gRPC itself. Nothing but bytes are given to it, so no .proto is compiled.
#
#     my $grpc = RegistryTest->grpc or plan skip_all => 'no python3-grpcio';
#     $grpc->set('NOT_SERVING');                    # or SERVING, UNKNOWN, SERVICE_UNKNOWN
#     $grpc->set('status 14');                      # a gRPC status
#     $grpc->set('hang');
#     $grpc->set(SERVING => service => 'shop.Cart') # of one service; others: status 5, NOT_FOUND

use strict;
use warnings;

use RegistryTest::Process qw(free_port temp_dir slurp spew spawn stop_process wait_until alive time_scale);

my $SERVER = <<'PYTHON';
import sys, time
from concurrent import futures
import grpc

port, directory = sys.argv[1:3]
serving = {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3}
statuses = {code.value[0]: code for code in grpc.StatusCode}

# HealthCheckRequest: field 1, the service's name.
def service_of(request):
    if not request:
        return ""
    assert request[0] == 0x0a and request[1] == len(request) - 2 and request[1] < 128, request
    return request[2:].decode()

def check(request, context):
    service = service_of(request)
    with open(directory + "/log", "a") as log:
        log.write("%s %s %s\n" % (service or "-", context.peer(), dict(context.invocation_metadata()).get("user-agent", "-")))
    with open(directory + "/how") as file:
        how = dict(line.split("=", 1) for line in file.read().splitlines())
    if service not in how and service:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    word = how[service]
    if word == "hang":
        time.sleep(30)
    if word.startswith("status "):
        context.abort(statuses[int(word[7:])], "as told")
    return b"" if word == "UNKNOWN" else b"\x08" + bytes([serving[word]])

handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
if not server.add_insecure_port("127.0.0.1:" + port):
    sys.exit("port %s is taken" % port)
server.start()
open(directory + "/ready", "w").close()
server.wait_for_termination()
PYTHON

my $PYTHON;

# Debian's module is that of Debian's Python, which need not be the first in PATH.
sub _python {
    return $PYTHON if defined $PYTHON;
    ($PYTHON) = grep { system("'$_' -c 'import grpc' >/dev/null 2>&1") == 0 } '/usr/bin/python3', 'python3';
    return $PYTHON ||= '';
}

# Nothing when this machine has no gRPC for Python.
sub new {
    my ($class) = @_;
    my $python = _python() or return;
    my $self = bless { dir => temp_dir(), port => free_port(), how => { '' => 'SERVING' } }, $class;
    spew("$self->{dir}/server.py", $SERVER);
    $self->_tell;
    $self->start;
    return $self;
}

sub start {
    my ($self) = @_;
    unlink "$self->{dir}/ready";
    my $pid = $self->{pid} = spawn([ _python(), "$self->{dir}/server.py", $self->{port}, $self->{dir} ],
        stdout => "$self->{dir}/output", stderr => "$self->{dir}/output");
    wait_until(sub { -e "$self->{dir}/ready" || !alive($pid) }, 20 * time_scale());
    die "the gRPC server did not start:\n" . slurp("$self->{dir}/output") unless -e "$self->{dir}/ready";
    return $self;
}

sub name { return 'grpc' }
sub host { return '127.0.0.1' }
sub port { return $_[0]{port} }
sub address { return "127.0.0.1:$_[0]{port}" }
sub stop { my ($self) = @_; return stop_process($self->{pid}, KILL => 5) }

# What it answers from now on: see above.
sub set {
    my ($self, $how, %opt) = @_;
    $self->{how}{ defined $opt{service} ? $opt{service} : '' } = $how;
    return $self->_tell;
}

# Replaced at once: a request never finds half of it.
sub _tell {
    my ($self) = @_;
    spew("$self->{dir}/how.new", join '', map { "$_=$self->{how}{$_}\n" } sort keys %{ $self->{how} });
    rename "$self->{dir}/how.new", "$self->{dir}/how" or die "rename: $!\n";
    return $self;
}

# The services that were asked for, in order, "-" for none named; from: without the first so many.
sub asked {
    my ($self, $from) = @_;
    my @asked = map { (split / /)[0] } split /\n/, slurp("$self->{dir}/log");
    return @asked[ ($from || 0) .. $#asked ];
}

# What it complains of.
sub output { return slurp("$_[0]{dir}/output") }

1;
